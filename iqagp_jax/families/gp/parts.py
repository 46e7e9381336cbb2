"""What a file of a model of Gaussian processes may hold."""

from iqagp_jax.families.gp.features import ALF, InverseDistances
from iqagp_jax.families.gp.kernels import (
    RBF,
    Constant,
    Joint,
    Linear,
    Matern52,
    Matern92,
    Periodic,
    Product,
    RBFCyclic,
    Restrict,
    Select,
    Sum,
    TwoScales,
)
from iqagp_jax.families.gp.means import ZBL, BornMayer, ConstantMean, SumOfMeans
from iqagp_jax.families.gp.model import JointData, Model, Points
from iqagp_jax.families.gp.options import GPOptions

FEATURES = (ALF, InverseDistances)
KERNELS = (RBF, Periodic, Matern52, Matern92, TwoScales, RBFCyclic, Linear, Constant, Select, Restrict, Joint, Sum, Product)
MEANS = (ConstantMean, SumOfMeans, BornMayer, ZBL)
PARTS = (Model, Points, JointData, GPOptions, *FEATURES, *KERNELS, *MEANS)

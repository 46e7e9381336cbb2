"""What a file of a model of Gaussian processes may hold."""

from iqagp_jax.families.gp.environments import Environments
from iqagp_jax.families.gp.error_scale import ErrorScale
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
from iqagp_jax.families.gp.local import Local
from iqagp_jax.families.gp.means import ZBL, Base, BornMayer, ConstantMean, SumOfMeans
from iqagp_jax.families.gp.model import Division, JointData, Model, Points
from iqagp_jax.families.gp.options import GPOptions

FEATURES = (ALF, InverseDistances)
KERNELS = (RBF, Periodic, Matern52, Matern92, TwoScales, RBFCyclic, Linear, Constant, Select, Restrict, Joint, Sum, Product)
MEANS = (ConstantMean, SumOfMeans, BornMayer, ZBL, Base)
PARTS = (Model, Points, JointData, Division, ErrorScale, Local, Environments, GPOptions, *FEATURES, *KERNELS, *MEANS)

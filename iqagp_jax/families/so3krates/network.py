"""The network of SO3krates: atomic numbers and the vectors between near atoms in, an energy of every atom out.

J. T. Frank, O. T. Unke, K.-R. Mueller, S. Chmiela, Nat. Commun. 2024, doi:10.1038/s41467-024-50620-6. Every atom i has features
x_i, which no rotation changes, and Euclidean variables chi_i,lm, which turn as spherical harmonics of degree l do.
They begin as an embedding of the element and as zero. For a pair of atoms r = R_j - R_i, d = |r|, u = r / d, with the cutoff
phi(d) = (cos(pi d / d_cut) + 1) / 2 and the radial basis b_k(d), a layer is

    s_l        = sum_m (chi_j,lm - chi_i,lm)^2 / sqrt(2l+1)                    what the pair's variables tell
    w          = MLP_radial(b) + MLP_spherical(s)                              filter, the same seen from both ends
    alpha_h    = phi (q_i . w k_j)_h / sqrt(channels of head h)                attention of head h, without softmax
    x'_i       = x_i + sum_j alpha_h v_j,h / n
    chi'_i,lm  = chi_i,lm + sum_j beta_l Y_lm(u) / n                           beta as alpha, with weights of its own
    y          = W [x'_i, sum_m chi'_i,lm^2 / sqrt(2l+1)] + c                  exchange
    x''_i      = x'_i + y_x,    chi''_i,lm = chi'_i,lm (1 + y_l)

and the energy of atom i is an MLP of the last x_i. n is 1, or the mean number of neighbours in the training data.

| symbol                         | here                                    |
| ------------------------------ | --------------------------------------- |
| x, chi                         | `x` (N, F), `chi` (N, M), M = sum (2l+1) |
| sum_m (...)^2 / sqrt(2l+1)     | `invariants`                            |
| phi, b, Y                      | `Edges.cutoff`, `.radial`, `.harmonics` |
| alpha, beta                    | `Attention.coefficients`                |
| q, k, v                        | `query`, `key`, `value`                 |

All is written for one configuration. Several beside each other, in which no pair joins two, are one configuration, too.
"""

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import gammaln

from iqagp_jax.data.content import SMALLEST, numbers
from iqagp_jax.machine.precision import Array
from iqagp_jax.system.frames import norm
from iqagp_jax.system.harmonics import solid_harmonics

ELEMENTS = 100
"""Rows of the embedding: atomic numbers up to 99; 0 stands for no atom."""

DEGREES = (1, 2, 3, 4)

DECAY = 0.9448630629184640
"""1/angstrom, in rho = exp(-DECAY d) of Bernstein polynomials; half an inverse bohr, as in SpookyNet."""


def exp_gaussian(distance: Any, size: int, cutoff: float) -> Any:
    """b_k = exp(-c (exp(-d) - mu_k)^2), mu_k evenly from exp(-d_cut) to 1, c = [2 (1 - exp(-d_cut)) / K]^-2.

    O. T. Unke, M. Meuwly, PhysNet, doi:10.1021/acs.jctc.9b00181. (P,) angstrom -> (P, K).
    """
    begin = math.exp(-cutoff)
    centres, width = np.linspace(begin, 1.0, size, dtype=distance.dtype), 2 / size * (1 - begin)
    return jnp.exp(-(((jnp.exp(-distance)[:, None] - centres) / width) ** 2))


def bernstein(distance: Any, size: int, cutoff: float) -> Any:
    """b_k = binomial(K-1, k) rho^k (1 - rho)^(K-1-k), rho = exp(-d / 2 bohr).

    O. T. Unke et al., SpookyNet, doi:10.1038/s41467-021-27504-0. (P,) angstrom -> (P, K).
    """
    k = np.arange(size)
    binomial = (gammaln(size) - gammaln(k + 1) - gammaln(size - k)).astype(distance.dtype)
    log_rho = -DECAY * jnp.maximum(distance, 1e-4)[:, None]
    return jnp.exp(binomial + k * log_rho + (size - 1 - k) * jnp.log(-jnp.expm1(log_rho)))


RADIAL_BASES = {"exp-gaussian": exp_gaussian, "bernstein": bernstein}


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Pairs:
    """Pairs of atoms, each once, padded where there is room for more."""

    i: Array
    """(P,) number of one atom"""
    j: Array
    """(P,) number of the other; beyond all atoms, as i is, where there is no pair"""
    vectors: Array
    """(P, 3) R_j - R_i, angstrom; anything where there is no pair"""
    there: Array
    """(P,) whether there is a pair"""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Edges:
    """What the network sees of `Pairs`."""

    i: Array
    j: Array
    cutoff: Array
    """(P,) phi, zero where there is no pair"""
    radial: Array
    """(P, K) b"""
    harmonics: Array
    """(P, M) Y_lm(u) of the vector from i to j"""
    parity: Any
    """(M,) of the same from j to i, as a multiple: (-1)^l"""

    def at_ends(self, values: Any) -> tuple[Any, Any]:
        """Values (N, ...) of atoms i and of atoms j, (P, ...) each."""
        return values[self.i], values[self.j]

    def received(self, by_i: Any, by_j: Any, n_atoms: int) -> Any:
        """The sum (N, ...) of all that atoms receive of their pairs, (P, ...) by i and by j."""
        ends = jnp.concatenate([self.i, self.j])
        return jnp.zeros((n_atoms, *by_i.shape[1:]), by_i.dtype).at[ends].add(jnp.concatenate([by_i, by_j]))


def components(degrees: tuple[int, ...]) -> np.ndarray:
    """(M,) which of the degrees each Euclidean variable is of, as 0, 0, 0, 1, 1, ..."""
    return np.repeat(np.arange(len(degrees)), [2 * l + 1 for l in degrees])


def spherical_harmonics(vectors: Any, degrees: tuple[int, ...]) -> Any:
    """Real Y_lm of unit vectors (..., 3), as (..., M): orthonormal on the sphere, no Condon-Shortley sign, m = -l ... l."""
    racah = solid_harmonics(vectors, max(degrees))
    # Those of rank l are l0, l1c, l1s, l2c, ...: sines are m < 0, cosines m > 0.
    order = [l * l + k for l in degrees for k in (*range(2 * l, 0, -2), 0, *range(1, 2 * l, 2))]
    scale = np.concatenate([np.full(2 * l + 1, np.sqrt((2 * l + 1) / (4 * np.pi))) for l in degrees])
    return (racah[..., np.array(order)] * scale).astype(vectors.dtype)


def invariants(chi: Any, degrees: tuple[int, ...]) -> Any:
    """sum_m chi_lm^2 / sqrt(2l+1) of Euclidean variables (..., M), as (..., |l|). The sign is plus for every l."""
    of = components(degrees)
    sums = np.zeros((len(of), len(degrees)))
    sums[np.arange(len(of)), of] = 1 / np.sqrt(2 * np.array(degrees)[of] + 1)
    return chi**2 @ sums.astype(chi.dtype)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Linear:
    """y = x W + c."""

    FILE_NAME = "LinearLayer"
    """in model files, where a kernel has the shorter name"""

    kernel: Array
    """W, (in, out)"""
    bias: Array
    """c, (out,)"""

    @classmethod
    def random(cls, rng: np.random.Generator, inward: int, outward: int) -> "Linear":
        """Kernel of normal numbers of variance 1/in, no bias."""
        return cls(normal(rng, inward, (inward, outward)), np.zeros(outward, np.float32))

    def __call__(self, x: Any) -> Any:
        """(..., in) -> (..., out)"""
        return x @ self.kernel + self.bias


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class MLP:
    """y = silu(x W_1 + c_1) W_2 + c_2."""

    first: Linear
    second: Linear

    @classmethod
    def random(cls, rng: np.random.Generator, inward: int, within: int, outward: int) -> "MLP":
        """Both layers `Linear.random`."""
        return cls(Linear.random(rng, inward, within), Linear.random(rng, within, outward))

    def __call__(self, x: Any) -> Any:
        """(..., in) -> (..., out)"""
        return self.second(jax.nn.silu(self.first(x)))


def normal(rng: np.random.Generator, inward: int, shape: tuple[int, ...]) -> np.ndarray:
    """Normal numbers of variance 1/in, float32."""
    return (rng.normal(size=shape) / np.sqrt(inward)).astype(np.float32)


def blocks(rng: np.random.Generator, features: int, heads: int) -> np.ndarray:
    """A random matrix for each head, (H, F/H, F/H)."""
    width = features // heads
    return normal(rng, width, (heads, width, width))


def by_head(x: Any, matrices: Any) -> Any:
    """Features (N, F), in as many blocks as there are matrices (H, F/H, F/H), each block times its own; (N, F)."""
    blocks = x.reshape(len(x), len(matrices), -1)
    return jnp.einsum("nhc,hcd->nhd", blocks, matrices).reshape(x.shape)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Attention:
    """How much an atom takes of what a neighbour has, for each of H heads."""

    radial: MLP
    spherical: MLP
    query: Array
    """(H, F/H, F/H)"""
    key: Array
    """(H, F/H, F/H)"""

    @classmethod
    def random(cls, rng: np.random.Generator, features: int, basis: int, degrees: int, heads: int) -> "Attention":
        """All of it random."""
        radial = MLP.random(rng, basis, features, features)
        spherical = MLP.random(rng, degrees, max(features // 4, 1), features)
        return cls(radial, spherical, *(blocks(rng, features, heads) for _ in range(2)))

    def coefficients(self, x: Any, invariants: Any, edges: Edges) -> tuple[Any, Any]:
        """alpha (P, H) of what i takes of j, and of what j takes of i; x (N, F), invariants s (P, |l|)."""
        heads, width = self.query.shape[:2]
        w = self.radial(edges.radial) + self.spherical(invariants)
        (q_i, q_j), (k_i, k_j) = (edges.at_ends(by_head(x, m)) for m in (self.query, self.key))
        factor = edges.cutoff[:, None] / np.sqrt(width, dtype=x.dtype)
        return tuple(factor * (q * w * k).reshape(-1, heads, width).sum(-1) for q, k in ((q_i, k_j), (q_j, k_i)))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Norm:
    """LayerNorm: y = a (x - mean) / sqrt(variance + 1e-6) + c over the features of an atom."""

    scale: Array
    """a, (F,)"""
    bias: Array
    """c, (F,)"""

    def __call__(self, x: Any) -> Any:
        """(N, F) -> (N, F)"""
        centred = x - x.mean(-1, keepdims=True)
        return self.scale * centred * jax.lax.rsqrt((centred**2).mean(-1, keepdims=True) + 1e-6) + self.bias


def _stretched(coefficients: Any, width: int) -> Any:
    """(P, H) -> (P, H width), each coefficient for all channels of its head."""
    return jnp.repeat(coefficients, width, 1, total_repeat_length=width * coefficients.shape[1])


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Layer:
    """x, chi -> x'', chi''. With norms the attention and the exchange see normalised x; both still add to x itself."""

    features: Attention
    value: Array
    """(H, F/H, F/H)"""
    vectors: Attention
    exchange: Linear
    norms: tuple[Norm, ...] = ()
    """before the attention, and before the exchange; none without LayerNorm"""
    residual: MLP | None = None
    """x' + MLP(silu(x')) instead of x', where there is one"""

    @classmethod
    def random(
        cls, rng: np.random.Generator, features: int, basis: int, degrees: int, heads: int, norms: bool, residual: bool
    ) -> "Layer":
        """All of it random."""
        even = Norm(np.ones(features, np.float32), np.zeros(features, np.float32))
        return cls(
            Attention.random(rng, features, basis, degrees, heads),
            blocks(rng, features, heads),
            Attention.random(rng, features, basis, degrees, degrees),
            Linear.random(rng, features + degrees, features + degrees),
            (even, even) if norms else (),
            MLP.random(rng, features, features, features) if residual else None,
        )

    def coefficients(self, x: Any, chi: Any, edges: Edges, degrees: tuple[int, ...]) -> tuple[Any, Any]:
        """(alpha of i and j, beta of i and j)."""
        chi_i, chi_j = edges.at_ends(chi)
        between = invariants(chi_j - chi_i, degrees)
        return self.features.coefficients(x, between, edges), self.vectors.coefficients(x, between, edges)

    def __call__(self, x: Any, chi: Any, edges: Edges, degrees: tuple[int, ...], neighbours: float) -> tuple[Any, Any]:
        """(N, F), (N, M) -> the same."""
        of, heads = components(degrees), len(self.value)
        seen = self.norms[0](x) if self.norms else x
        alpha, beta = self.coefficients(seen, chi, edges, degrees)
        v_i, v_j = edges.at_ends(by_head(seen, self.value))
        width = v_i.shape[1] // heads
        by_i = [_stretched(alpha[0], width) * v_j, beta[0][:, of] * edges.harmonics]
        by_j = [_stretched(alpha[1], width) * v_i, beta[1][:, of] * edges.harmonics * edges.parity]
        received = edges.received(jnp.concatenate(by_i, 1), jnp.concatenate(by_j, 1), len(x)) / neighbours
        x, chi = x + received[:, : x.shape[1]], chi + received[:, x.shape[1] :]
        if self.residual is not None:
            x = x + self.residual(jax.nn.silu(x))
        seen = self.norms[1](x) if self.norms else x
        y = self.exchange(jnp.concatenate([seen, invariants(chi, degrees)], 1))
        return x + y[:, : x.shape[1]], chi * (1 + y[:, x.shape[1] :][:, of])


STATIC = ("degrees", "cutoff", "radial_basis", "basis_size", "neighbours")
"""Fields of a `Network` that are no arrays."""


@partial(jax.tree_util.register_dataclass, data_fields=["embedding", "layers", "head"], meta_fields=STATIC)
@dataclass(frozen=True)
class Network:
    """Atomic energies of atomic numbers and `Pairs`; its arrays are all in one precision, which is that of the arithmetic."""

    embedding: Array
    """(100, F), a row for each atomic number"""
    layers: Layer
    """all of them, stacked along a first axis"""
    head: MLP
    """F -> 1"""
    degrees: tuple[int, ...] = (1, 2)
    """l of the Euclidean variables, in rising order"""
    cutoff: float = 5.0
    """angstrom"""
    radial_basis: str = "exp-gaussian"
    """a name of `RADIAL_BASES`"""
    basis_size: int = 32
    """K"""
    neighbours: float = 1.0
    """n: what atoms receive is divided by it"""

    @classmethod
    def random(
        cls,
        rng: np.random.Generator,
        features: int,
        layers: int,
        heads: int,
        norms: bool = False,
        residual: bool = False,
        **static: Any,
    ) -> "Network":
        """Kernels of variance 1/in and an embedding of variance 1, in float32; ``static`` are the fields that are no arrays.

        ValueError, in a sentence, for fields that no network can have, and features that heads or degrees do not divide.
        """
        like = cls(None, None, None, **static)  # type: ignore[arg-type]
        check_static(like)
        degrees = len(like.degrees)
        if features % heads or features % degrees:
            raise ValueError(
                f"expected features that {heads} heads and {degrees} degrees divide, found {features}; take a multiple of"
                f" {math.lcm(heads, degrees)}"
            )
        each = [Layer.random(rng, features, like.basis_size, degrees, heads, norms, residual) for _ in range(layers)]
        return replace(
            like,
            embedding=normal(rng, 1, (ELEMENTS, features)),
            layers=jax.tree.map(lambda *a: np.stack(a), *each),
            head=MLP.random(rng, features, features, 1),
        )

    def check_content(self) -> None:
        """ValueError, in a sentence, unless its arrays fit together and are numbers: of one that was read."""
        (features,), heads = numbers("embedding", self.embedding, (ELEMENTS, None)).shape[1:], len(self.layers.value[0])
        options = len(self.layers.value), heads, bool(self.layers.norms), self.layers.residual is not None
        static = {name: getattr(self, name) for name in STATIC}
        like = Network.random(np.random.default_rng(0), features, *options, **static)
        if str(jax.tree.structure(like)) != str(jax.tree.structure(self)):
            raise ValueError("expected the arrays of a network of SO3krates, found others")
        for (path, expected), found in zip(jax.tree.leaves_with_path(like), jax.tree.leaves(self), strict=True):
            numbers(f"network{jax.tree_util.keystr(path)}", found, expected.shape)

    def in_precision(self, dtype: Any) -> "Network":
        """With arrays of another precision."""
        return jax.tree.map(lambda a: a.astype(dtype), self)

    def edges(self, pairs: Pairs) -> Edges:
        """What the network sees of pairs. Where there is none it sees two atoms at the cutoff, and takes nothing of them."""
        at_cutoff = jnp.array([0.0, 0.0, self.cutoff], pairs.vectors.dtype)
        vectors = jnp.where(pairs.there[:, None], pairs.vectors, at_cutoff).astype(self.embedding.dtype)
        distance = norm(vectors)
        parity = (-1.0) ** np.array(self.degrees)[components(self.degrees)]
        return Edges(
            pairs.i,
            pairs.j,
            jnp.where(pairs.there, smooth(distance, self.cutoff), 0.0),
            RADIAL_BASES[self.radial_basis](distance, self.basis_size, self.cutoff),
            spherical_harmonics(vectors / distance[:, None], self.degrees),
            parity.astype(self.embedding.dtype),
        )

    def features(self, numbers: Any, edges: Edges) -> tuple[Any, Any]:
        """Features x (N, F) and Euclidean variables chi (N, M) after all layers, of atomic numbers (N,)."""
        x = self.embedding[numbers]
        chi = jnp.zeros((len(x), len(components(self.degrees))), x.dtype)

        def through(carried: tuple[Any, Any], layer: Layer) -> tuple[Any, None]:
            x, chi = carried
            return layer(x, chi, edges, self.degrees, self.neighbours), None

        return jax.lax.scan(through, (x, chi), self.layers)[0]

    def __call__(self, numbers: Any, pairs: Pairs) -> Any:
        """Atomic energies (N,), in units of the scale, of atomic numbers (N,)."""
        return self.head(self.features(numbers, self.edges(pairs))[0])[:, 0]


def smooth(distance: Any, cutoff: float) -> Any:
    """phi(d) = (cos(pi d / d_cut) + 1) / 2 below the cutoff, else 0."""
    return jnp.where(distance < cutoff, 0.5 * (jnp.cos(np.pi / cutoff * distance) + 1), 0.0)


def check_static(network: Network) -> None:
    """ValueError, in a sentence, for degrees, a cutoff, a basis or a number of neighbours that no network can have."""
    degrees = network.degrees
    if not isinstance(degrees, tuple) or not degrees or list(degrees) != sorted(set(degrees) & set(DEGREES)):
        raise ValueError(f"expected degrees among {', '.join(map(str, DEGREES))}, each once and rising, found {degrees!r}")
    if network.radial_basis not in RADIAL_BASES:
        raise ValueError(f"expected a radial basis among {', '.join(RADIAL_BASES)}, found {network.radial_basis!r}")
    numbers("size of the radial basis", network.basis_size, (), least=1, kinds="iu")
    numbers("cutoff", network.cutoff, (), SMALLEST)
    numbers("neighbours", network.neighbours, (), SMALLEST)

"""Energies and gradients of many geometries at once by matrix products: what a radial kernel's potential costs.

For a kernel phi(s) of the squared distance s_i = |u - z_i|^2 between embedded points, with c_i = b_i.(u - z_i),

    E = sum_i P_i + c_i Q_i        P_i = sum_A a_Ai phi(s_i t_A)        Q_i = -2 sum_A v_A t_A phi'(s_i t_A)
    dE/du = sum_i 2 (P_i' + c_i Q_i') (u - z_i) + Q_i b_i

where ' is d/ds and the sums run over atoms A that see the same u and z_i, up to the order of the features, and differ in
length scale and signal variance only. With isotropic inverse distances these are all atoms of the molecule, one group, in
which atoms of equal length scale count as one; else every atom is a group of its own, with t = v = 1. Q is there after forces
only. So a group costs two matrix products, four after forces, and an elementwise function for each A; the gradient goes on
through the features by their vector-Jacobian product. Training points are taken in blocks, so that covariances stay in cache;
where they are images of each other by many permutations of equal atoms, `images` makes the products cheaper.

| symbol | array           | shape                                                        |
| ------ | --------------- | ------------------------------------------------------------ |
| u      |                 | (B, E) embedded features of B geometries, less ``centre``    |
| z_i    | ``z``           | (G, E, n) for G blocks of groups, less ``centre``, `Images.spread` |
| a_Ai   | ``weights``     | (G, A, n) eV                                                 |
| t_A    | ``sharpness``   | (G, A) inverse square of the length scale, relative to u's   |
| b_i    | ``directions``  | (G, E, n) eV, `Images.spread`                                |
| v_A    | ``shares``      | (G, A) of the directions, relative to those of the first     |
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from iqagp_jax.families.gp import joint
from iqagp_jax.families.gp.images import Images
from iqagp_jax.families.gp.kernels import RBF, Radial

CHUNK = 2**17
"""Covariances between training points and the geometries taken together: 1 MiB in float64, about a core's cache."""

BLOCK = 1024
"""Training points of a block at most: more would leave a core's cache, and fewer make small products. Twice as many where
images share their products, which are smaller."""

FEWEST = 64
"""Geometries taken together at least, where there are as many: with fewer the matrix products slow down."""

TRIPLES = 2**19
"""Numbers of triples of atoms that are made together at most, about what a core's cache holds."""

ALONE = 3
"""Up to so many geometries are taken one by one: products of matrices with so few rows are slower than those of vectors."""


class Trained(NamedTuple):
    """All that is known of the training points before any geometry comes; symbols as above."""

    images: Images
    kernel: Radial
    """of the groups, arrays with the groups first"""
    centre: jax.Array
    """of the groups, (groups, E): squared distances are differences of large numbers, so they are taken about the centre"""
    z: tuple[jax.Array, ...]
    squares: jax.Array
    """|z_i|^2, (G, n)"""
    weights: jax.Array
    sharpness: jax.Array
    directions: tuple[jax.Array, ...] | None
    offsets: jax.Array | None
    """b_i.z_i, (G, n)"""
    shares: jax.Array | None


def prepare(model, dtype):
    """The `Trained` of a `model.Model` with a radial kernel, in ``dtype``, which is that of the arithmetic to come.

    Under a trace nothing can be looked up in a model's arrays: its atoms stay apart there.
    """
    traced = any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(model))
    if model.points is None and model.sees_alike and not traced:
        trained = of_observations(model.process, model.features, model.kernel, model.targets)
        points = trained(model.joint.positions, model.joint.weights)
        return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), points)
    shares = _shares(model) if model.sees_alike and not traced else None
    seen = slice(None) if shares is None else slice(1)
    kernels, train = jax.tree.map(lambda leaf: leaf[seen], (model.kernel, model.train_features))
    if shares is None:
        sharpness = v = np.ones((len(model.weights), 1))
        weights = model.weights[:, None]
    else:
        sharpness, number = np.unique((model.kernel.lengthscale[0] / model.kernel.lengthscale) ** 2, return_inverse=True)
        equal = (number == np.arange(len(sharpness))[:, None]).astype(float)
        sharpness, v, weights = sharpness[None], (equal @ shares)[None], (equal @ model.weights)[None]

    z, b = jax.vmap(lambda k, x: k.embed(x))(kernels, train), None
    if model.directions is not None:
        b = jax.vmap(lambda k, x, d: jax.jvp(k.embed, (x,), (d,))[1])(kernels, train, model.directions[seen])
    images = Images.none(z.shape[2]) if shares is None else Images.of(model.permutations, model.features.pairs[0])
    points = points_of(images, kernels, z, weights, sharpness, b, v)
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), points)


def of_observations(process, features, kernel, targets):
    """The function from positions (n, N, 3) and the weights (n M,) of their observations to the `Trained`, in float64.

    For atoms that see alike and a radial kernel: no training point is made for more than one of them.
    """
    images, own = Images.of(process.permutations, features.pairs[0]), jax.tree.map(lambda leaf: leaf[:1], kernel)
    sharpness, number = np.unique(np.asarray(process.inverse_square[0]), return_inverse=True)
    variance = (number == np.arange(len(sharpness))[:, None]) * np.asarray(process.variance[0])

    def first_atom(r):
        return features.of_pairs(r, features.pairs[:1])

    def embed(x):
        return jax.vmap(lambda k, x: k.embed(x))(own, x)

    @jax.jit
    def trained(positions, v):
        a, b = joint.expansion(v, positions, first_atom, targets, process.permutations)
        x = jax.vmap(first_atom)(joint.images(positions, process.permutations)).swapaxes(0, 1)
        z, b = jax.jvp(embed, (x,), (b,))
        scaled, shares = (variance @ a)[None], variance.sum(1)[None]
        return points_of(images, own, z, scaled, sharpness[None], b if "forces" in targets else None, shares)

    return trained


def points_of(images, kernel, z, weights, sharpness, directions, shares):
    """`Trained` in blocks of equal size, filled up with points of no weight.

    z and ``directions`` are (groups, P n, E) here, ``weights`` (groups, A, P n), all images by one permutation before the next.
    """
    groups, total, _ = z.shape
    n = total // images.count
    count = -(-total // (BLOCK if images.count == 1 else 2 * BLOCK))
    size = -(-n // count)

    def split(x):
        """(groups, P n, K) -> (groups count, P, size, K)"""
        apart = x.reshape(groups, images.count, n, -1)[:, images.number]
        filled = jnp.pad(apart, ((0, 0), (0, 0), (0, count * size - n), (0, 0)))
        return filled.reshape(groups, images.count, count, size, -1).swapaxes(1, 2).reshape(-1, images.count, size, x.shape[2])

    def flat(x):
        """(G, P, size) -> (G, P size)"""
        return x.reshape(len(x), -1)

    order, centre = np.array(images.order), z.mean(1)
    z = split(z - centre[:, None])[..., order]
    b = offsets = None
    if directions is not None:
        b = split(directions)[..., order]
        b, offsets = images.spread(b), flat((b * z).sum(-1))
    return Trained(
        images=images,
        kernel=kernel,
        centre=centre[:, order],
        z=images.spread(z),
        squares=flat((z * z).sum(-1)),
        weights=jnp.moveaxis(split(jnp.swapaxes(weights, 1, 2)), -1, 1).reshape(groups * count, -1, images.count * size),
        sharpness=jnp.repeat(sharpness, count, axis=0),
        directions=b,
        offsets=offsets,
        shares=jnp.repeat(shares, count, axis=0),
    )


def deviation(evaluated, most_of=None):
    """The function points, positions (N, 3) -> energy, gradient (N, 3), as it is and as vmap makes chunks of it.

    The first has derivatives, the second has none. ``evaluated`` (points, positions (B, N, 3)) is that of a batch, such as
    `evaluate` of features; ``most_of`` (points) tells how many are taken together, by default `at_a_time`.
    """
    most_of = most_of or at_a_time

    def one(points, positions):
        energies, gradients = evaluated(points, positions[None])
        return energies[0], gradients[0]

    many = jax.custom_batching.custom_vmap(one)

    @many.def_vmap
    def batched(size, is_batched, points, positions):
        if any(jax.tree.leaves(is_batched[0])):  # as many models: nothing to gain
            axes = jax.tree.map(lambda along: 0 if along else None, tuple(is_batched))
            return jax.vmap(one, axes)(points, positions), (True, True)
        most = 1 if size <= ALONE else most_of(points)
        return in_chunks(partial(evaluated, points), most)(positions), (True, True)

    return one, many


def evaluate(features, points, positions):
    """Energies (B,) and gradients (B, N, 3) of positions (B, N, 3) in float64."""
    # Otherwise XLA keeps a transposed copy of points that are constants to it: twice the memory to read for one geometry.
    points = jax.lax.optimization_barrier(points)
    u, pull_back = jax.vjp(jax.vmap(partial(_embed, features, points)), positions)
    blocks, of_block = points._replace(kernel=None, centre=None), partial(_block, type(points.kernel))
    seen = jnp.repeat(u, len(points.squares) // len(points.centre), axis=1)
    if len(positions) == 1:
        energies, slopes = (x[None] for x in jax.vmap(of_block)(blocks, seen[0]))
    else:
        # One block after the other keeps its covariances in cache, but copies the block's training points first, which would
        # take longer than all else for one geometry.
        energies, slopes = (x.swapaxes(0, 1) for x in jax.lax.map(lambda x: of_block(*x), (blocks, seen.swapaxes(0, 1))))
    (gradient,) = pull_back(slopes.reshape(*u.shape[:2], -1, u.shape[2]).sum(2))
    return energies.astype(positions.dtype).sum(1), gradient


def prepare_local(model, dtype):
    """The `Trained` of the surroundings of each element's atoms, in the order of `Environments.groups`, in ``dtype``."""
    z, a, b = model.local_points

    def of_group(group):
        mine = [jnp.concatenate([of_atoms[k] for k in group])[None] for of_atoms in (z, a, b)]
        images, own = Images.none(mine[0].shape[2]), RBF(jnp.ones(1))
        points = points_of(images, own, mine[0], mine[1][:, None], np.ones((1, 1)), mine[2], np.ones((1, 1)))
        return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), points)

    return tuple(map(of_group, model.local.environments.groups))


def evaluate_local(local, points, positions):
    """What surroundings add to energies (B,) and gradients (B, N, 3) of positions (B, N, 3) in float64."""
    points, groups = jax.lax.optimization_barrier(points), local.environments.groups
    dtype = points[0].squares.dtype
    near = (positions - jax.lax.stop_gradient(positions.mean(1, keepdims=True))).astype(dtype)
    z, pull_back = jax.vjp(jax.vmap(local), near)

    def of_group(group, own):
        u = z[:, np.array(group)] - own.centre[0]
        blocks = jax.lax.map(lambda block: _block(RBF, block, u), own._replace(kernel=None, centre=None))
        return [of_blocks.sum(0) for of_blocks in blocks]

    parts = zip(*map(of_group, groups, points), strict=True)
    energies, slopes = (jnp.concatenate(part, axis=1)[:, np.argsort(np.concatenate(groups))] for part in parts)
    (gradient,) = pull_back(slopes)
    return energies.astype(positions.dtype).sum(1), gradient.astype(positions.dtype)


def _embed(features, points, positions):
    """u (groups, E) of positions (N, 3)."""
    near = (positions - jax.lax.stop_gradient(positions.mean(0))).astype(points.squares.dtype)
    x = features(near) if len(points.centre) == len(near) else features.of_pairs(near, features.pairs[:1, points.images.order])
    return jax.vmap(lambda k, x, c: k.embed(x) - c)(points.kernel, x, points.centre)


def _block(radial, points, u):
    """Energies (...) of one block and their slopes dE/du (..., E)."""
    images = points.images
    s = jnp.maximum(points.squares + (u * u).sum(-1, keepdims=True) - 2 * images.dot(u, points.z), 0.0)

    def over_atoms(function, coefficients):
        return sum(c * function(s * t) for c, t in zip(coefficients, points.sharpness, strict=True))

    energies = over_atoms(radial.profile, points.weights)
    along_s = over_atoms(radial.slope, points.weights * points.sharpness[:, None])
    if points.directions is None:
        return _total(energies), _pull(u, points, along_s)
    c = images.dot(u, points.directions) - points.offsets
    along_c = over_atoms(radial.slope, -2 * points.shares * points.sharpness)
    energies += c * along_c
    along_s += c * over_atoms(radial.curvature, -2 * points.shares * points.sharpness**2)
    return _total(energies), _pull(u, points, along_s) + images.pull(along_c, points.directions)


def _pull(u, points, along_s):
    """sum_i dE/ds_i ds_i/du, ds_i/du = 2 (u - z_i)."""
    return 2 * (u * _total(along_s)[..., None] - points.images.pull(along_s, points.z))


def _total(x):
    """Sums of rows by a matrix product: XLA would evaluate all that leads to x a second time within a sum."""
    return x @ jnp.ones(x.shape[-1], x.dtype)


def at_a_time(points):
    """Geometries to be taken together, at most."""
    return max(FEWEST, CHUNK // points.squares.shape[1])


def in_chunks(function, most):
    """``function`` of positions (B, N, 3) applied to at most so many at a time."""

    def apply(positions):
        count = len(positions)
        if not count:
            one = jax.eval_shape(function, jax.ShapeDtypeStruct((1, *positions.shape[1:]), positions.dtype))
            return jax.tree.map(lambda x: jnp.zeros((0, *x.shape[1:]), x.dtype), one)
        chunks = -(-count // most)
        if chunks == 1:
            return function(positions)
        size = -(-count // chunks)
        padded = positions[np.minimum(np.arange(chunks * size), count - 1)].reshape(chunks, size, *positions.shape[1:])
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:count], jax.lax.map(function, padded))

    return apply


def _shares(model):
    """v_A (N,) relative to that of the first, for atoms that see the same up to the order of the columns."""
    if model.directions is None:
        return np.ones(len(model.species))
    column = np.argsort(np.sort(model.features.pairs, axis=2) @ [len(model.species), 1], axis=1)[:, None]
    b = np.take_along_axis(np.asarray(model.directions), column, 2)
    return np.einsum("aid,id->a", b, b[0]) / np.sum(b[0] ** 2)

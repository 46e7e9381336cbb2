"""Atomic multipole moments of a partition's atoms, up to the hexadecapole, in atomic units.

    Q^A_lk = Z_A delta_l0 - int w_A(r) rho(r) R_lk(r - R_A) dr

| symbol | name                | what                                                                          |
| ------ | ------------------- | ----------------------------------------------------------------------------- |
| Q^A_lk | ``atomic_moments``  | e bohr^l, about nucleus A, along the axes of the geometry                     |
| w_A    | ``weights``         | share of atom A, times the quadrature weight                                  |
| rho    | ``density``         | electron density, electrons/bohr^3                                            |
| R_lk   | ``solid_harmonics`` | real regular solid harmonics, in the order of `harmonics.component_names`     |

q00 is the net charge; all else comes from the electrons (AIMAll's .int files list the same numbers as Q[l,m,c|s], with
q00 of the electrons alone). A dataset made with ``iqagp label --multipoles`` holds them as ``becke_multipoles`` (n, N, 25)
and so on; in the atoms' local frames, as FFLUX' models have them, they are

    frames = ALF.choose(data.species, data.positions).frames
    with jax.enable_x64(True):
        local = jax.vmap(local_moments, (0, None, 0))(data.extra["becke_multipoles"], frames, data.positions)
"""

import numpy as np

from iqagp_jax.system.harmonics import solid_harmonics, translated

MAX_RANK = 4
"""Hexadecapole."""

BLOCK = 20000
"""Grid points handled at once: their harmonics should stay in cache."""


def atomic_moments(coords, weights, density, nuclei, charges):
    """Moments (N, 25) of N atoms with ``nuclei`` (N, 3) and their ``charges`` (N,), in bohr and e.

    ``density`` (G,) at the points ``coords`` (G, 3); ``weights`` (N, G) dense or a sparse array. Integrated about the
    middle of the nuclei and then moved to each, which is exact, so that each point's harmonics are computed once for all
    atoms. (About a far origin rounding would cost 1e-16 R^8.)
    """
    middle = nuclei.mean(0)
    coords, nuclei = coords - middle, nuclei - middle
    electrons = np.zeros((len(nuclei), (MAX_RANK + 1) ** 2))
    for start in range(0, len(coords), BLOCK):
        block = slice(start, start + BLOCK)
        electrons += weights[:, block] @ (density[block, None] * solid_harmonics(coords[block], MAX_RANK))
    moments = -translated(electrons, -nuclei)
    moments[:, 0] += charges
    return moments

"""Permutations of equal atoms that a molecule's energy surface cannot tell apart, found from one geometry.

A permutation p of the atoms turns positions R into R[p]; the energy is the same, the forces and the atomic energies are
permuted alike. All permutations of equal atoms are symmetries, but only those are worth anything that lead to where the
molecule can go: the automorphisms of its bond graph (methyl hydrogens) and, with a proton that an acceptor could take up, those
of the graph before with the graph after the transfer (the two enol forms of malondialdehyde).
"""

import numpy as np

from iqagp_jax.system.geometry import bond_graph, proton_transfers

MOST = 100
"""A molecule with more such permutations is refused: each is a copy of the training data."""

MOST_ISOMORPHISMS = 10_000
"""Maps of one graph to another that are looked at, at most."""


def permutations(species, positions):
    """The group of permutations (P, N) of a molecule, the identity first.

    ``positions`` (N, 3) in angstrom define bonds, possible transfers, and the handedness of every atom with four
    neighbours: a permutation that turns over some of these centres and leaves others is left out, as bonds would have to
    break on its way (of a single methyl group the three rotations are left).

    Raises ValueError where there are more than `MOST`.
    """
    bonded = bond_graph(species, positions)
    graphs = [bonded]
    for donor, hydrogen, acceptor in proton_transfers(species, positions):
        moved = bonded.copy()
        moved[donor, hydrogen] = moved[hydrogen, donor] = False
        moved[acceptor, hydrogen] = moved[hydrogen, acceptor] = True
        graphs.append(moved)
    found = {p for graph in graphs for p in _isomorphisms(species, bonded, graph) if _feasible(p, bonded, positions)}
    group = _closed(found)
    if len(group) > MOST:
        raise ValueError(f"expected at most {MOST} permutations of equal atoms, found more; fit without symmetry")
    return np.array(sorted(group))


def orbits(permutations):
    """For every atom the number of its class of equivalent atoms, (N,), classes counted from 0."""
    return np.unique(permutations.min(0), return_inverse=True)[1]


def _isomorphisms(species, graph, other):
    """All maps p of atoms to atoms of their kind with graph[a, b] = other[p_a, p_b], as tuples."""
    order = _connected_order(graph)
    degrees, other_degrees = graph.sum(0), other.sum(0)

    def extend(p):
        if len(p) == len(order):
            yield tuple(p[a] for a in range(len(order)))
            return
        a = order[len(p)]
        for b in range(len(order)):
            if b in p.values() or species[a] != species[b] or degrees[a] != other_degrees[b]:
                continue
            if all(graph[a, c] == other[b, d] for c, d in p.items()):
                yield from extend({**p, a: b})

    found = []
    for p in extend({}):
        found.append(p)
        if len(found) > MOST_ISOMORPHISMS:
            raise ValueError(f"expected at most {MOST_ISOMORPHISMS} symmetries of the bonds, found more; fit without symmetry")
    return found


def _connected_order(graph):
    """Atoms in an order in which each has, where possible, a neighbour before it."""
    order: list[int] = []
    while len(order) < len(graph):
        near = [a for a in range(len(graph)) if a not in order and graph[a, order].any()]
        order.append(min(near or [a for a in range(len(graph)) if a not in order]))
    return order


def _feasible(p, bonded, positions):
    """Whether p keeps the handedness of all centres with four neighbours, or turns over all of them."""
    turned = set()
    for centre in np.flatnonzero(bonded.sum(0) == 4):
        neighbours = np.flatnonzero(bonded[centre])
        volumes = [np.linalg.det(positions[list(of[:3])] - positions[of[3]]) for of in (neighbours, np.array(p)[neighbours])]
        turned.add(np.sign(volumes[0]) == np.sign(volumes[1]))
    return len(turned) < 2


def _closed(generators):
    """The group that permutations generate, as a set of tuples; cut off beyond `MOST`."""
    group, new = set(generators), set(generators)
    while new and len(group) <= MOST:
        new = {tuple(p[a] for a in q) for p in new for q in generators} - group
        group |= new
    return group

"""Permutations of equal atoms that a molecule's energy surface cannot tell apart, found from one geometry.

A permutation p of the atoms turns positions R into R[p]; the energy is the same, the forces and the atomic energies are
permuted alike. All permutations of equal atoms are symmetries, but only those are worth anything that lead to where the
molecule can go: the automorphisms of its bond graph (methyl hydrogens) and, with a proton that an acceptor could take up, those
of the graph before with the graph after the transfer (the two enol forms of malondialdehyde).

The group may be large: 1944 permutations of neopentane, 2^20 20! of twenty waters. It is therefore not enumerated but found by
its generators and counted by orbits: with atoms fixed one after the other, its order is the product of the numbers of places
that the next atom can go to (orbits and stabilisers, doi:10.1016/j.jsc.2013.09.003). Where it has more elements than one can
use, `Group.within` gives a subgroup that is small enough.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
from numpy.typing import ArrayLike

from iqagp_jax.machine.warn import warn
from iqagp_jax.system.geometry import bond_graph, proton_transfers

MOST = 100
"""Permutations that are used, at most: each costs as much as a copy of the training data."""

MOST_GRAPHS = 1000
"""Bond graphs that proton transfers lead to one after the other, counted at most."""

MOST_TRIALS = 2000
"""Trials to find one map of a graph to another; those of chemistry need one for each atom. Without a map found, the group is
taken for smaller than it is, and still is a group."""

MOST_RANKED = 1000
"""Elements of a group that is too large, among which a subgroup is sought."""

FLAT = 0.3
"""Four neighbours that span less than this (angstrom^3, six times their volume) have no handedness; methane's span 6.8."""

SHOWN = 4
"""Generators, and cycles of each, that are told."""

Permutation = tuple[int, ...]


@dataclass(frozen=True)
class Group:
    """Permutations of equal atoms of one molecule that are a group."""

    species: tuple[str, ...]
    positions: np.ndarray
    """(N, 3) angstrom"""
    generators: tuple[Permutation, ...]
    """permutations that all others are made of, such as one for each methyl group"""
    order: int
    """how many there are"""

    @classmethod
    def of(cls, species: Sequence[str], positions: ArrayLike) -> "Group":
        """All that there are, see `permutations`."""
        positions = np.asarray(positions, dtype=np.float64)
        bonded = bond_graph(species, positions)
        search = _Search(species, positions, bonded)
        generators, order = search.automorphisms()
        transferred = [p for p in map(search.map_to, _transferred(species, positions, bonded)) if p]
        order *= _count_graphs(bonded, [*generators, *transferred])
        return cls(tuple(species), positions, (*generators, *transferred), order)

    @property
    def permutations(self) -> np.ndarray:
        """All of them, (order, N), the identity first."""
        return np.array(sorted(_elements(self._identity, self.generators)))

    def within(self, most: int = MOST) -> "Group":
        """This group, or where it has more than ``most`` elements a subgroup that has not.

        Generators are taken as long as the group that they generate is small enough: rotations of methyl groups first, then
        what turns the geometry most nearly into itself, as rotations and reflections of the whole molecule do. The same
        geometry always gives the same subgroup.
        """
        if len(_elements(self._identity, self.generators, most)) <= most:
            return self
        chosen: tuple[Permutation, ...] = ()
        group = {self._identity}
        for p in chain(self._rotors(), self._nearest()):
            if 2 * len(group) > most:
                break
            larger = _elements(self._identity, (*chosen, p), most)
            if p not in group and len(larger) <= most:
                chosen, group = (*chosen, p), larger
        return replace(self, generators=chosen, order=len(group))

    def __str__(self) -> str:
        """The generators as cycles of atoms, such as (H2 H3 H4)."""
        told = list(map(self._in_words, self.generators[:SHOWN]))
        return ", ".join(told) + ", ..." * (len(self.generators) > SHOWN) or "the identity"

    def _in_words(self, p: Permutation) -> str:
        cycles = [" ".join(f"{self.species[a]}{a + 1}" for a in cycle) for cycle in _cycles(p) if len(cycle) > 1]
        return "".join(f"({cycle})" for cycle in cycles[:SHOWN]) + "..." * (len(cycles) > SHOWN)

    @property
    def _identity(self) -> Permutation:
        return tuple(range(len(self.species)))

    def _rotors(self) -> Iterator[Permutation]:
        """One rotation of each three equal atoms at an end of the molecule, as of a methyl group."""
        bonded = bond_graph(self.species, self.positions)
        for centre in np.flatnonzero(bonded.sum(0) == 4):
            ends = [int(a) for a in np.flatnonzero(bonded[centre]) if bonded[a].sum() == 1]
            if len(ends) == 3 and len({self.species[a] for a in ends}) == 1:
                p = list(self._identity)
                p[ends[0]], p[ends[1]], p[ends[2]] = ends[1], ends[2], ends[0]
                yield tuple(p)

    def _nearest(self) -> Iterator[Permutation]:
        """Elements, the first that are found, in the order of how well a rotation or reflection turns R into R[p].

        The ends that rotors turn are left out of R, wherever they stand.
        """
        some = np.array(sorted(_elements(self._identity, self.generators, MOST_RANKED)))
        stays = (np.array([self._identity, *self._rotors()]) == self._identity).all(0)
        centred = np.where(stays[:, None], self.positions - self.positions[stays].mean(0), 0.0)
        # Least sum of squares: 2 |R|^2 - 2 sum of the singular values of R^T R[p] (Kabsch, doi:10.1107/S0567739476001873).
        fit = np.linalg.svd(np.einsum("ax,pay->pxy", centred, centred[some]), compute_uv=False).sum(1)
        apart = np.sqrt(np.maximum(2 * ((centred**2).sum() - fit), 0) / len(centred))
        # A tenth of an angstrom is what molecules vibrate by. Of those that are as near those of odd order are first: threefold
        # axes make more atoms equal than mirrors do. Then those that move the fewest.
        odd = np.array([all(len(cycle) % 2 for cycle in _cycles(p)) for p in some.tolist()])
        order = np.lexsort(((some != self._identity).sum(1), ~odd, np.round(apart, 1)))
        return (tuple(p) for p in some[order].tolist())


def permutations(species: Sequence[str], positions: ArrayLike, most: int | None = None) -> np.ndarray:
    """The group of permutations (P, N) of a molecule, the identity first.

    ``positions`` (N, 3) in angstrom define bonds, possible transfers, and the handedness of every atom with four
    neighbours: a permutation that turns over some of these centres and leaves others is left out, as bonds would have to
    break on its way (of a single methyl group the three rotations are left).

    Where there are more than ``most``, by default `MOST`, a warning tells which subgroup is given: see `Group.within`.
    """
    most = MOST if most is None else most
    group = Group.of(species, positions)
    used = group.within(most)
    if used is not group:
        warn(
            f"{used.order} of {group.order} permutations of equal atoms are used, made of {used}; at most {most} are,"
            " as each costs as much as a copy of the data"
        )
    return used.permutations


def orbits(permutations: np.ndarray) -> np.ndarray:
    """For every atom the number of its class of equivalent atoms, (N,), classes counted from 0."""
    return np.unique(permutations.min(0), return_inverse=True)[1]


def _cycles(p: Sequence[int]) -> list[list[int]]:
    """Atoms that a permutation moves in a circle, those that stay too."""
    cycles, seen = [], set()
    for first in p:
        cycle = []
        while first not in seen:
            seen.add(first)
            cycle.append(first)
            first = p[first]
        cycles += [cycle] if cycle else []
    return sorted(cycle[cycle.index(min(cycle)) :] + cycle[: cycle.index(min(cycle))] for cycle in cycles)


def _transferred(species: Sequence[str], positions: np.ndarray, bonded: np.ndarray) -> Iterator[np.ndarray]:
    """The bond graphs after each possible transfer of a proton."""
    for donor, hydrogen, acceptor in proton_transfers(species, positions):
        moved = bonded.copy()
        moved[donor, hydrogen] = moved[hydrogen, donor] = False
        moved[acceptor, hydrogen] = moved[hydrogen, acceptor] = True
        yield moved


def _count_graphs(bonded: np.ndarray, generators: list[Permutation]) -> int:
    """Number of graphs that permutations make of one: its orbit, whose stabiliser are the automorphisms."""
    new, seen = [bonded], {bonded.tobytes()}
    while new and len(seen) < MOST_GRAPHS:
        images = [graph[np.ix_(p, p)] for graph in new for p in generators]
        new = list({g.tobytes(): g for g in images if g.tobytes() not in seen}.values())
        seen |= {graph.tobytes() for graph in new}
    return len(seen)


class _Search:
    """Maps of a bond graph to itself or another that keep atoms, bonds and handedness."""

    def __init__(self, species: Sequence[str], positions: np.ndarray, graph: np.ndarray):
        self.graph = graph
        self.kinds = np.unique(list(species), return_inverse=True)[1]
        self.lots = np.random.default_rng(0).integers(2**40, size=len(graph))
        self.positions = positions
        four = [(c, np.flatnonzero(graph[c])) for c in np.flatnonzero(graph.sum(0) == 4)]
        self.centres = [(c, of) for c, of in four if abs(self._volume(of)) > FLAT]

    def automorphisms(self) -> tuple[list[Permutation], int]:
        """Generators of the group, and its order: with atoms fixed one by one, the product of their orbits."""
        fixed: list[int] = []
        while (atom := self._undecided(fixed)) is not None:
            fixed.append(atom)
        generators: list[Permutation] = []
        order = 1
        # From the smallest stabiliser to the whole group: what generates one helps to generate the next.
        while fixed:
            atom = fixed.pop()
            colours, orbit = self._refined(self.graph, fixed), {atom}
            for image in np.flatnonzero(colours == colours[atom]).tolist():
                if image not in orbit and (p := self.map_to(self.graph, [*fixed, atom], [*fixed, image])):
                    generators.append(p)
                    orbit = _orbit(atom, generators)
            order *= len(orbit)
        return generators, order

    def map_to(self, other: np.ndarray, left: Sequence[int] = (), right: Sequence[int] = ()) -> Permutation | None:
        """A map of the graph to another that takes the atoms ``left`` to those on the ``right``, or None."""
        for turned in (False, True):
            self._trials = 0
            if p := self._extended(other, list(left), list(right), turned):
                return p
        return None

    def _undecided(self, fixed: list[int]) -> int | None:
        """The first atom that is not told from all others once some are fixed, of those with most neighbours."""
        colours = self._refined(self.graph, fixed)
        shared = np.flatnonzero(np.bincount(colours)[colours] > 1)
        return None if not len(shared) else int(shared[self.graph[shared].sum(1).argmax()])

    def _extended(self, other: np.ndarray, left: list[int], right: list[int], turned: bool) -> Permutation | None:
        self._trials += 1
        mine, theirs = self._refined(self.graph, left), self._refined(other, right)
        if self._trials > MOST_TRIALS or not np.array_equal(np.sort(mine), np.sort(theirs)):
            return None
        unique = np.bincount(mine) == 1
        image: np.ndarray = np.argsort(theirs, kind="stable")[np.argsort(np.argsort(mine, kind="stable"), kind="stable")]
        if not self._keeps_hands(image, unique[mine], turned):
            return None
        if unique.all():
            return tuple(image.tolist()) if np.array_equal(self.graph, other[np.ix_(image, image)]) else None
        shared = np.flatnonzero(~unique[mine])
        atom = int(shared[self.graph[shared].sum(1).argmax()])
        for candidate in np.flatnonzero(theirs == mine[atom]).tolist():
            if p := self._extended(other, [*left, atom], [*right, candidate], turned):
                return p
        return None

    def _keeps_hands(self, image: np.ndarray, known: np.ndarray, turned: bool) -> bool:
        """Whether the centres that a map is ``known`` for have all their hands kept, or all ``turned`` over."""
        for centre, of in self.centres:
            if known[centre] and known[of].all() and (self._volume(of) * self._volume(image[of]) < 0) != turned:
                return False
        return True

    def _volume(self, of: np.ndarray) -> float:
        """Six times the volume that four atoms span, angstrom^3, its sign their handedness."""
        return float(np.linalg.det(self.positions[of[:3]] - self.positions[of[3]]))

    def _refined(self, graph: np.ndarray, fixed: Sequence[int]) -> np.ndarray:
        """Colours (N,) that tell atoms apart by element, by being fixed, and by their neighbours' colours, again and again.

        They are numbered by what they say, so that those of two graphs compare.
        """
        colours: np.ndarray = self.kinds.copy()
        colours[list(fixed)] = len(colours) + np.arange(len(fixed))
        n_before = 0
        while (n := len(np.unique(colours))) > n_before:
            # Different sets of neighbours have different sums of random numbers, but for an unlikely chance.
            colours = np.unique(colours, return_inverse=True)[1]
            colours = (colours << 50) + graph @ self.lots[colours]
            n_before = n
        return np.unique(colours, return_inverse=True)[1]


def _orbit(atom: int, generators: list[Permutation]) -> set[int]:
    """Where permutations take an atom."""
    reached, new = {atom}, {atom}
    while new:
        new = {p[a] for a in new for p in generators} - reached
        reached |= new
    return reached


def _elements(identity: Permutation, generators: Sequence[Permutation], most: int | None = None) -> set[Permutation]:
    """The group that permutations generate; of one with more than ``most`` elements so many and one, always the same."""
    group, new = {identity}, [identity]
    for q in new:
        for p in generators:
            found = tuple(p[a] for a in q)
            if found not in group:
                group.add(found)
                new.append(found)
            if most and len(group) > most:
                return group
    return group

"""Models and training sets of the FFLUX group's programs: FEREBUS' ``.model`` and csv files, as ICHOR and DL_FFLUX use them.

Files are in bohr, radian, hartree and e, atoms counted from 1; what comes out keeps the project's contract. The
facts about the format are those of the files themselves and of FEREBUS 7 (github.com/popelier-group/FEREBUS-v7):

| in the file           | means                                                                              |
| --------------------- | ---------------------------------------------------------------------------------- |
| ``rbf``               | exp(-sum theta d^2)                                                                |
| ``rbf-cyclic``        | the same, d of every third feature wrapped to (-pi, pi]                             |
| ``periodic``          | exp(-4 sum theta sin^2(d / 2))                                                     |
| ``linear``            | sum (x y)^order / c                                                                |
| ``constant``          | value                                                                              |
| ``prefactor``         | the whole kernel times it                                                           |
| mean ``linear``       | ymin + sum beta (x - xmin); ``quadratic`` the same with squares                     |
| ``scaling.x``, ``.y`` | ``standardise``: kernels and means see (x - mean) / standard deviation (1/n)       |
| ``[weights]``         | (K + nugget)^-1 (y - m), nugget in a comment                                        |

Programs differ in how they read the same file. `CONVENTIONS` names the readings; the weights tell which one is meant.
"""

import ast
import re
from dataclasses import replace
from functools import cache, cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from iqagp_jax.data.content import LARGEST
from iqagp_jax.data.dataset import Dataset
from iqagp_jax.data.level import Level
from iqagp_jax.data.text import TextFile
from iqagp_jax.families.fflux.models import AtomGP, Atomwise, Moments, PolynomialMean, is_length, odd_feature, told
from iqagp_jax.families.gp import regression
from iqagp_jax.families.gp.features import ALF
from iqagp_jax.families.gp.kernels import (
    RBF,
    Constant,
    Joint,
    Kernel,
    Linear,
    Periodic,
    Product,
    Radial,
    RBFCyclic,
    Restrict,
    Select,
    Sum,
)
from iqagp_jax.families.gp.means import ConstantMean
from iqagp_jax.families.gp.model import Model
from iqagp_jax.machine.files import write_atomically
from iqagp_jax.machine.warn import warn
from iqagp_jax.system.elements import parse_atom
from iqagp_jax.system.frames import alf_positions
from iqagp_jax.system.geometry import pair_distances
from iqagp_jax.system.harmonics import component_names
from iqagp_jax.units import BOHR, HARTREE

CONVENTIONS = {
    "wrap": "every third feature of rbf kernels wraps at pi, as DL_FFLUX evaluates them (FEREBUS does not)",
    "half-periodic": "periodic kernels are exp(-2 sum theta sin^2(d / 2)), as some gpytorch exports have them",
    "relative-noise": "the nugget is the stated noise divided by the standard deviation of y (1/(n-1))",
    "gls-mean": "the constant mean is the generalised least-squares one, though the file states the sample mean",
}
"""Readings of a file other than FEREBUS' own, by name."""

CONVENTIONS_OF_KERNELS = ("wrap", "half-periodic")

NUGGET = 1e-10
"""FEREBUS' nugget, where a file states none."""

REPRODUCED = 1e-4
"""Weights are reproduced when they agree within this share of the largest."""

FAR = 100
"""A value as many times the quartiles' distance from the middle is told: it may be a damaged one."""

NOTES = ("program", "version", "likelihood", "method", "basis-set")
"""Comments that are kept."""


class _File(TextFile):
    """The sections of a .model file, lines with their numbers, and its comments."""

    def __init__(self, path):
        super().__init__(path, "a .model file")
        self.sections: dict[str, Any] = {}
        self.comments: dict[str, tuple[int, str]] = {}
        lines: list[Any] = []
        for number, line in enumerate(map(str.strip, self.lines)):
            if line.startswith("#"):
                key, _, value = line.lstrip("# ").replace("=", " ").partition(" ")
                self.comments[key.lower()] = (number, value.strip())
            elif re.fullmatch(r"\[.*\]", line):
                lines = self.sections.setdefault(line[1:-1].lower(), [])
            elif line:
                lines.append((number, line))

    def section(self, name):
        if name not in self.sections:
            raise self.error(len(self.lines), f"expected a section [{name}], found the end of the file; was it cut off?")
        return self.sections[name]

    def value(self, section, key, optional=False):
        """(line number, words) of the line that begins with ``key``."""
        rows = [(number, line.split()) for number, line in self.section(section)]
        found = [(number, words[1:]) for number, words in rows if words[0].lower() == key.lower()]
        if len(found) > 1:
            raise self.error(found[1][0], f"expected {key!r} once in section [{section}], found it again")
        if found or optional:
            return found[0] if found else None
        raise self.error(len(self.lines), f"expected {key!r} in section [{section}], found none")

    def floats(self, number, words, count=None):
        numbers = [self.number(number, word) for word in words]
        if count is not None and len(numbers) != count:
            raise self.error(number, f"expected {count} numbers, found {len(numbers)}")
        return np.array(numbers)

    def integer(self, section, key):
        number, words = self.value(section, key)
        if len(words) != 1 or not words[0].isdecimal():
            raise self.error(number, f"expected one whole number after {key!r}, found {' '.join(words)!r}")
        return int(words[0])

    def table(self, section, rows, columns):
        lines = self.section(section)
        if len(lines) != rows or not rows:
            number = lines[-1][0] if lines else len(self.lines)
            raise self.error(
                number, f"expected {rows or 'some'} rows in [{section}], found {len(lines)}; was the file cut off?"
            )
        last = [line.split()[-1] for _, line in lines]
        if lines[-1][0] == len(self.lines) - 1:
            _check_end(self, last)
        return np.array([self.floats(number, line.split(), columns) for number, line in lines])

    @cached_property
    def as_it_stands(self):
        """The `AtomGP` that FEREBUS would take it for."""
        number, alf = self.value("system", "ALF")
        n_atoms, n = self.integer("dimensions", "number_of_atoms"), self.integer("dimensions", "number_of_training_points")
        d = self.integer("dimensions", "number_of_features")
        if n_atoms < 3 or d != 3 * n_atoms - 6:
            at = self.value("dimensions", "number_of_features")[0]
            raise self.error(at, f"expected 3N - 6 features of at least 3 atoms, found {d} of {n_atoms} atoms")
        try:
            frame = parse_frame(" ".join(alf), n_atoms)
        except ValueError as error:
            raise self.error(number, str(error)) from None
        names = {key: " ".join(self.value("system", key)[1]) for key in ("name", "atom", "property")}
        _check_atom(self, names["atom"], frame)
        _check_units(self, d, names["property"].lower())
        notes = {key: value for key, (_, value) in self.comments.items() if key in NOTES}
        x, y = self.table("training_data.x", n, d), self.table("training_data.y", n, 1)[:, 0]
        if odd := odd_feature(x):
            row, column, wanted = odd
            at = self.section("training_data.x")[row][0]
            raise self.error(at, f"expected {wanted} as feature {column + 1}, found {x[row, column]:g}")
        x_scaling = _scaling(self, "scaling.x", x)
        stated = next((self.comments[key] for key in ("nugget", "noise", "jitter") if key in self.comments), None)
        model = AtomGP(
            frame=frame,
            n_atoms=n_atoms,
            kernel=_kernel(self, d, x_scaling[1], ()),
            mean=_mean(self, d),
            x=x,
            y=y,
            weights=self.table("weights", n, 1)[:, 0],
            x_scaling=x_scaling,
            y_scaling=_scaling(self, "scaling.y", y),
            units=(np.where(is_length(d), BOHR, 1.0), np.array(HARTREE if names["property"].lower() == "iqa" else 1.0)),
            noise=self.number(*stated) if stated else NUGGET,
            labels=tuple({**names, **notes}.items()),
        )
        try:
            model.check_content()
        except ValueError as error:
            raise ValueError(f"{self.path}: {error}; is it the file that its program wrote?") from None
        return model


def _check_atom(file, atom, frame):
    """ValueError unless an atom has an element's name, and a number that is its frame's centre."""
    at = file.value("system", "atom")[0]
    try:
        _, number = parse_atom(atom)
    except ValueError as error:
        raise file.error(at, str(error)) from None
    if number != frame[0] + 1:
        raise file.error(at, f"expected atom {number} as the first of its ALF, found {frame[0] + 1}")


OWN_UNITS = {
    "bohr": ("bohr", "bohrs", "au", "a.u."),
    "radians": ("radians", "radian", "rad"),
    "Ha": ("ha", "hartree", "hartrees", "eh", "au", "a.u."),
    "e": ("e", "unknown", "au", "a.u."),
}
"""The units of FEREBUS' files and how they are spelled; a moment's are e bohr^l, which begins with e."""


def _check_units(file, d, property):
    """ValueError where a file states other units. FFLUX' programs do not read them: the numbers' meaning would be unknown."""
    stated = {key: file.value("training_data", key, optional=True) for key in ("units.x", "units.y")}
    of_features = ["bohr" if length else "radians" for length in is_length(d)]
    of_value = ["Ha"] if property == "iqa" else ["e"] if re.fullmatch(r"q\d\d[cs]?", property) else []
    for (key, found), expected in zip(stated.items(), (of_features, of_value), strict=True):
        if found is None or not expected:
            continue
        number, words = found
        if len(words) < len(expected):
            raise file.error(number, f"expected the units of {len(expected)} numbers after {key}, found {len(words)}")
        for word, unit in zip(words, expected, strict=False):
            if word.lower() not in OWN_UNITS[unit]:
                raise file.error(
                    number,
                    f"expected {key} {unit}, as FEREBUS and DL_FFLUX take all files whatever they state, found {word}; convert"
                    " the data, and fit the model again",
                )


def _check_end(file, column):
    """ValueError where a file stops amid its last number: it has fewer digits by far than the others of its column."""
    *others, last = (word.strip().lstrip("+-") for word in column)
    if not file.ends_amid_a_line or not others:
        return
    short_exponent = re.compile(r"[eEdD][+-]?\d$")
    half = short_exponent.search(last) and not any(map(short_exponent.search, others))
    if half or len(last) + 2 < min(map(len, others)):
        raise file.error(len(file.lines), f"expected a number as long as those above, found {last!r}; was the file cut off?")
    warn(f"{file.path} ends without the end of a line: is its last number, {last}, whole?")


def read_model(path, conventions=(), accept_weights=False):
    """Read one ``.model`` file as an `AtomGP`.

    ``conventions`` (names of `CONVENTIONS`) choose how the file is read. The weights are recomputed; where they are not
    the file's, ValueError says under which conventions they would be, unless ``accept_weights``. ValueError, in a sentence
    that names the line, for files that are cut off, state other units or hold features that no geometry has.
    """
    if unknown := sorted(set(conventions) - set(CONVENTIONS)):
        raise ValueError(f"expected conventions among {', '.join(CONVENTIONS)}, found {', '.join(unknown)}")
    file = _File(path)
    model, fits = _interpret(file, conventions), _fitting(file)
    if accept_weights or fits(conventions):
        return model
    possible = [name for name in CONVENTIONS if _matters(file, name)]
    for n in range(len(possible) + 1):
        for others in combinations(possible, n):
            if set(others) != set(conventions) and fits(others):
                how = f"they are with the conventions {', '.join(others)}" if others else "they are without conventions"
                raise ValueError(f"{path}: the weights are not those of the file's data and hyperparameters; {how}")
    raise ValueError(
        f"{path}: the weights are not those of the file's data and hyperparameters under any known convention"
        f" ({', '.join(CONVENTIONS)}); accept them as they are (--accept-weights) or fit the model again"
    )


def reproduces_weights(model):
    """Whether w = (K + noise)^-1 r gives the weights of an `AtomGP` within `REPRODUCED` of the largest."""
    return _agree(_solved(_covariance(model), model.noise, model.residual)[0], model)


def _agree(weights, model):
    return bool(np.abs(weights - model.weights).max() <= REPRODUCED * np.abs(model.weights).max())


def _covariance(model):
    """k(x_i, x_j) (n, n) of an `AtomGP`'s training points; row by row, since differences of all features fill the memory."""

    @jax.jit
    def matrix(kernel, x):
        if isinstance(kernel, Radial):
            return regression.cross_covariance(kernel, x, x)
        return jax.lax.map(lambda a: jax.vmap(lambda b: kernel(a, b))(x), x)

    with jax.enable_x64(True):
        return matrix(model.kernel, model.scaled(model.x))


def _solved(covariance, noise, residual):
    """(K + noise)^-1 r and (K + noise)^-1 1, both (n,)."""

    @jax.jit
    def solve(covariance, noise, residual):
        factor = jnp.linalg.cholesky(covariance + noise * jnp.eye(len(residual)))
        return regression.weights(factor, residual), regression.weights(factor, jnp.ones_like(residual))

    with jax.enable_x64(True):
        return tuple(map(np.asarray, solve(covariance, noise, residual)))


def _matters(file, convention):
    """Whether a file read with a convention is another than without."""
    kinds = [file.value(section, "type")[1] for section in file.sections if section.startswith("kernel.")]
    return {
        "wrap": ["rbf"] in kinds,
        "half-periodic": ["periodic"] in kinds,
        "relative-noise": file.as_it_stands.y.std() > 0,
        "gls-mean": file.value("mean", "type")[1] == ["constant"],
    }[convention]


def _fitting(file):
    """A function that tells whether a file's weights are those of conventions; every matrix is made and solved once."""
    model = file.as_it_stands

    @cache
    def covariance(of_kernel):
        return _covariance(_interpret(file, of_kernel))

    @cache
    def solved(of_kernel, of_noise):
        return _solved(covariance(of_kernel), _interpret(file, of_noise).noise, model.residual)

    def fits(conventions):
        of_kernel, of_noise = (
            tuple(n for n in names if n in conventions) for names in (CONVENTIONS_OF_KERNELS, ("relative-noise",))
        )
        weights, ones = solved(of_kernel, of_noise)
        if "gls-mean" in conventions:
            weights = weights - weights.sum() / ones.sum() * ones
        return _agree(weights, model)

    return fits


def _interpret(file, conventions):
    """The `AtomGP` of a file that is read with ``conventions``."""
    model = file.as_it_stands
    if set(conventions) & set(CONVENTIONS_OF_KERNELS):
        model = replace(model, kernel=_kernel(file, model.x.shape[1], model.x_scaling[1], conventions))
    if "relative-noise" in conventions:
        if not model.y.std() > 0:
            raise ValueError(
                f"{file.path}: expected values that differ for the convention relative-noise, found one; leave it out"
            )
        model = replace(model, noise=model.noise / model.y.std(ddof=1))
    if "gls-mean" not in conventions:
        return model
    if file.value("mean", "type")[1] != ["constant"]:
        raise ValueError(f"{file.path}: expected a constant mean for the convention gls-mean, found another; leave it out")
    with jax.enable_x64(True):
        scaled = (model.y - model.y_scaling[0]) / model.y_scaling[1]
        offset = np.asarray(regression.generalised_least_squares_mean(model.factor(), scaled))
    return replace(model, mean=replace(model.mean, offset=offset))


def _scaling(file, key, data):
    number, words = file.value("training_data", key, optional=True) or (0, ["none"])
    if words == ["none"]:
        return np.zeros(data.shape[1:]), np.ones(data.shape[1:])
    if words == ["standardise"]:
        if not (data.std(0) > 0).all():
            raise file.error(
                number, f"expected data that vary for {key} standardise, found a column of one value; leave it out"
            )
        return data.mean(0), data.std(0)
    raise file.error(number, f"expected {key} none or standardise, found {' '.join(words)!r}")


def _mean(file, d):
    number, kind = file.value("mean", "type")
    zero = np.zeros(d)
    if kind == ["zero"]:
        return PolynomialMean(np.zeros(()), zero, zero)
    if kind == ["constant"]:
        return PolynomialMean(file.floats(*file.value("mean", "value"), 1)[0], zero, zero)
    if kind in (["linear"], ["quadratic"]):
        slopes, origin = (file.floats(*file.value("mean", key), d) for key in ("beta", "xmin"))
        return PolynomialMean(file.floats(*file.value("mean", "ymin"), 1)[0], slopes, origin, 1 if kind == ["linear"] else 2)
    raise file.error(number, f"expected a mean zero, constant, linear or quadratic, found {' '.join(kind)!r}")


def _kernel(file, d, x_scale, conventions):
    """The kernel of the composition, a sum of products of the named kernels."""
    number, words = file.value("kernels", "composition")
    composition = "".join(words)

    def build(node):
        if isinstance(node, ast.Name):
            return _component(file, node.id, d, x_scale, conventions)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Mult):
            first, second = build(node.left), build(node.right)
            return first + second if isinstance(node.op, ast.Add) else first * second
        raise file.error(number, f"expected kernels joined by + and *, found {composition!r}")

    if (stated := file.value("kernels", "number_of_kernels", optional=True)) is not None:
        kernels = sum(name.startswith("kernel.") for name in file.sections)
        if file.integer("kernels", "number_of_kernels") != kernels:
            raise file.error(stated[0], f"expected {' '.join(stated[1])} sections of kernels, found {kernels}")
    unused = {name.removeprefix("kernel.") for name in file.sections if name.startswith("kernel.")}
    unused -= set(re.findall(r"\w+", composition.lower()))
    if unused:
        raise file.error(number, f"expected all kernels in the composition {composition!r}, found {', '.join(unused)} not used")
    try:
        parsed = ast.parse(composition, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise file.error(number, f"expected kernels joined by + and *, found {composition[:80]!r}") from None
    if (depth := composition.count("+") + composition.count("*")) > 100:
        raise file.error(number, f"expected at most 100 sums and products of kernels, found {depth}")
    kernel = build(parsed)
    prefactor = file.value("kernels", "prefactor", optional=True)  # ICHOR's
    factor = file.floats(*prefactor, 1)[0] if prefactor else 1.0
    return kernel if factor == 1 else Constant(np.asarray(factor)) * kernel


def _component(file, name, d, x_scale, conventions):
    section = f"kernel.{name.lower()}"
    number, kind = file.value(section, "type")
    if kind == ["constant"]:
        return Constant(file.floats(*file.value(section, "value"), 1)[0])
    at, dimensions = file.value(section, "active_dimensions")
    if not all(k.isdecimal() and 1 <= int(k) <= d for k in dimensions) or len(set(dimensions)) != len(dimensions):
        raise file.error(at, f"expected different active dimensions from 1 to {d}, found {' '.join(dimensions)!r}")
    columns = tuple(int(k) - 1 for k in dimensions)
    size = len(columns)
    if file.value(section, "number_of_dimensions", optional=True) and file.integer(section, "number_of_dimensions") != size:
        found = file.integer(section, "number_of_dimensions")
        raise file.error(at, f"expected {found} active dimensions as number_of_dimensions says, found {size}")
    if kind == ["linear"]:
        order = file.integer(section, "order") if file.value(section, "order", optional=True) else 1
        return Restrict(Linear(file.floats(*file.value(section, "c"), size), order), columns)
    at, words = file.value(section, "theta", optional=True) or file.value(section, "thetas")
    theta = file.floats(at, words, size)
    if (theta < 0).any():
        raise file.error(at, f"expected theta of at least zero, found {theta.min():g}")
    with np.errstate(divide="ignore"):
        lengthscale = 1 / np.sqrt(2 * theta)
    wrap = kind in (["rbf-cyclic"], ["rbf-cylic"]) or "wrap" in conventions
    if kind == ["rbf"] and not wrap:
        return Select(RBF(lengthscale), columns)
    if kind in (["rbf"], ["rbf-cyclic"], ["rbf-cylic"]):  # FEREBUS 7.0 wrote rbf-cylic
        period = (np.where(np.arange(d) % 3 == 2, 2 * np.pi, np.inf) / x_scale)[list(columns)]
        return Restrict(RBFCyclic(lengthscale, period), columns)
    if kind == ["periodic"]:
        return Select(Periodic(lengthscale * (np.sqrt(2) if "half-periodic" in conventions else 1)), columns)
    raise file.error(number, f"expected a kernel rbf, rbf-cyclic, periodic, linear or constant, found {' '.join(kind)!r}")


FILE_NAME = re.compile(r".+_(?P<property>[A-Za-z0-9]+)_(?P<atom>[A-Za-z]+\d+)\..*")
"""SYSTEM_property_ATOM.model, with whatever else between the last two."""


def read_folder(folder, property="iqa", conventions=(), accept_weights=False):
    """All models of one ``property`` (iqa, q00, ...) of a molecule in a folder as one potential, `Atomwise`.

    The models of the atoms must be of the same system, one for each atom, and be of the property and the atom that their
    names tell. A warning names those whose names tell nothing.
    """
    folder = Path(folder)
    named = {path: FILE_NAME.fullmatch(path.name) for path in sorted(folder.glob("*.model"))}
    paths = {path: found for path, found in named.items() if found and found["property"].lower() == property.lower()}
    if not paths:
        raise FileNotFoundError(f"expected files *_{property}_*.model in the folder {str(folder)!r}, found none")
    if odd := [path.name for path, found in named.items() if not found]:
        warn(f"left out of {folder}, as they are not named SYSTEM_{property}_ATOM.model: {', '.join(odd)}")
    models = {}
    for path, its_name in paths.items():
        model = read_model(path, conventions, accept_weights)
        told = dict(model.labels)
        for what in ("property", "atom"):
            if told[what].lower() != its_name[what].lower():
                raise ValueError(f"{path}: expected the {what} {its_name[what]} that its name tells, found {told[what]} in it")
        atom = told["atom"]
        if atom in models:
            raise ValueError(
                f"{folder}: expected one {property} model for each atom, found two of {atom}, the second {path.name}"
            )
        models[atom] = model
    return assemble(models.values(), folder)


def read_moments(folder, max_rank=4, conventions=(), accept_weights=False):
    """The models of all multipole moments q00, q10, ... up to ``max_rank`` in a folder, as `Moments`."""
    names = component_names(max_rank)
    components = tuple(read_folder(folder, name, conventions, accept_weights) for name in names)
    frames = [tuple(atom.frame for atom in component.atoms) for component in components]
    if other := [name for name, frame in zip(names, frames, strict=True) if frame != frames[0]]:
        raise ValueError(f"{folder}: expected all moments in the frames of q00, found {', '.join(other)} in others")
    if other := [name for name, c in zip(names, components, strict=True) if c.species != components[0].species]:
        raise ValueError(f"{folder}: expected all moments of the atoms of q00, found {', '.join(other)} of others")
    return Moments(components)


def assemble(models, origin="models"):
    """One potential from the `AtomGP` of all atoms of a molecule; ValueError where one is missing or foreign."""
    by_number: dict[int, Any] = {}
    models = list(models)
    if len(systems := sorted({dict(model.labels).get("name", "") for model in models})) > 1:
        raise ValueError(
            f"{origin}: expected models of one system, found {', '.join(systems)}; keep them in folders of their own"
        )
    for model in models:
        name = dict(model.labels)["atom"]
        try:
            symbol, number = parse_atom(name)
        except ValueError as error:
            raise ValueError(f"{origin}: {error}") from None
        if number in by_number:
            other = dict(by_number[number][1].labels)["atom"]
            raise ValueError(f"{origin}: expected one model for each atom, found {other} and {name} as atom {number}")
        by_number[number] = (symbol, model)
    if not by_number:
        raise ValueError(f"{origin}: expected models of atoms, found none")
    first = next(iter(by_number.values()))[1]
    missing = sorted(set(range(1, first.n_atoms + 1)) - set(by_number))
    strange = sorted(n for n, (_, m) in by_number.items() if m.n_atoms != first.n_atoms or m.frame[0] != n - 1)
    if missing or strange:
        what = f"atoms {missing} have no model" if missing else f"the models of atoms {strange} belong to other molecules"
        raise ValueError(f"{origin}: expected one model for each of {first.n_atoms} atoms, but {what}")
    symbols, atoms = zip(*(by_number[n] for n in sorted(by_number)), strict=True)
    positions = geometries(first.x, first.frame, first.n_atoms)
    model = Atomwise(symbols, atoms, positions[0], told(dict(first.labels)))
    # The atoms' sum, not one atom's energy, says which training geometry is near a minimum.
    with jax.enable_x64(True):
        totals = jax.jit(lambda model, batch: jax.lax.map(lambda r: model(r).sum(), batch, batch_size=64))(model, positions)
        return replace(model, reference=positions[int(totals.argmin())])


def geometries(x, frame, n_atoms):
    """Positions (n, N, 3) in angstrom, in the atom's local frame, of ALF features (n, 3N - 6) in bohr and radian."""
    others = np.array([a for a in range(n_atoms) if a not in frame], dtype=int)
    with jax.enable_x64(True):
        lengths = np.where(is_length(x.shape[1]), BOHR, 1.0)
        return np.asarray(jax.vmap(lambda f: alf_positions(f, frame, others))(x * lengths))


def read_csv(path):
    """Features (n, 3N - 6) in bohr and radian and a dict of the properties (n,) of a training-set csv file.

    ValueError, in a sentence that names the line, for what is no number, for features that no geometry has (distances of zero,
    angles in degrees), and for a file that ends amid its last number.
    """
    file = TextFile(path, "a csv file")
    lines = [(k, [word.strip() for word in line.split(",")]) for k, line in enumerate(file.lines) if line.strip()]
    header, rows = lines[0][1] if lines else [], lines[1:]
    columns = [name for name in header if re.fullmatch(r"f\d+", name)]
    d = len(columns)
    if d < 3 or d % 3 or columns != [f"f{k}" for k in range(1, d + 1)]:
        raise file.error(0, f"expected columns f1 ... f(3N - 6) and properties, found {','.join(header)[:80]!r}")
    if twice := [name for name in header if name and header.count(name) > 1]:
        raise file.error(0, f"expected every column once, found {twice[0]} again")
    if not rows:
        raise file.error(0, "expected rows of data after the header, found none")
    table = np.empty((len(rows), len(header)))
    for row, (k, words) in enumerate(rows):
        if len(words) != len(header):
            raise file.error(k, f"expected {len(header)} columns, found {len(words)}")
        for column, word in enumerate(words):
            table[row, column] = _finite(word) if header[column] else 0.0
            if not abs(table[row, column]) < LARGEST:
                raise file.error(k, f"expected a finite number for {header[column]}, found {word!r}")
    _check_end(file, [words[-1] for _, words in rows])
    x = table[:, [header.index(name) for name in columns]]
    if odd := odd_feature(x):
        row, column, wanted = odd
        raise file.error(rows[row][0], f"expected {wanted} as {columns[column]}, found {x[row, column]:g}")
    return x, {name: table[:, k] for k, name in enumerate(header) if name and name not in columns}


def dataset_from_csv(paths, frames):
    """The training sets of all atoms of a molecule as a `Dataset`, for `fit_gp` with any features and kernel.

    ``paths`` maps the atoms' names (O1, H2, ...) to their csv files, ``frames`` to their atomic local frames as text
    (1,2,3). Geometries are rebuilt from the first atom's features; ValueError where another atom's are of others.
    """
    symbols, numbers = zip(*map(parse_atom, paths), strict=True) if paths else ((), ())
    if sorted(numbers) != list(range(1, len(paths) + 1)) or set(frames) != set(paths):
        raise ValueError(f"expected a file and a frame for every atom, numbered from 1, found {', '.join(paths)}")
    order = np.argsort(numbers)
    names = [tuple(paths)[k] for k in order]
    energies: list[np.ndarray] = []
    positions: Any = None
    for name in names:
        x, energy = property_of(paths[name], "iqa")
        rebuilt = geometries(x, parse_frame(frames[name], len(paths)), len(paths))
        positions = rebuilt if positions is None else positions
        if rebuilt.shape != positions.shape or np.abs(pair_distances(rebuilt) - pair_distances(positions)).max() > 1e-4:
            raise ValueError(
                f"{paths[name]}: expected the geometries of {paths[names[0]]} in the frame {frames[name]}, found others;"
                " are the rows the same, and is this the atom's frame?"
            )
        energies.append(energy * HARTREE)
    atomic = np.stack(energies, axis=1)
    species = tuple(symbols[k] for k in order)
    return Dataset(species, positions, atomic.sum(1), atomic_energies=atomic, level=Level(partition="qtaim"))


def property_of(path, name):
    """Features and one property of a training-set csv file; ValueError where it has no such column."""
    x, properties = read_csv(path)
    if name not in properties:
        raise ValueError(f"{path}, line 1: expected a column {name!r}, found {', '.join(properties) or 'no property'}")
    values = properties[name]
    low, middle, high = np.percentile(values, (25, 50, 75))
    if high > low and len(far := np.flatnonzero(np.abs(values - middle) > FAR * (high - low))):
        warn(
            f"{path}: {name} of {len(far)} of {len(values)} rows is far from all others: {values[far[0]]:g} in the row"
            f" {far[0] + 1} of data, {middle:g} in the middle; take it out if it is wrong"
        )
    return x, values


def parse_frame(text, n_atoms):
    """An atomic local frame counted from 0, from text such as ``1,2,4`` counted from 1."""
    words = text.replace(",", " ").split()
    if len(set(words)) != 3 or not all(w.isdecimal() and 1 <= int(w) <= n_atoms for w in words):
        raise ValueError(f"expected three different atoms from 1 to {n_atoms}, as in 1,2,3, found {text!r}")
    return tuple(int(w) - 1 for w in words)


def predict(model, x):
    """The property of an `AtomGP`, in the unit of its data, at features (m, 3N - 6) in bohr and radian: (m,)."""
    with jax.enable_x64(True):
        return np.asarray(jax.jit(AtomGP.predict)(model, x))


def _finite(word):
    """A number as Fortran or Python prints it; NaN for anything else."""
    if not re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eEdD][+-]?\d+)?", word):
        return np.nan
    return float(re.sub("[dD]", "e", word))


def write_model(model, path):
    """Write an `AtomGP` as a ``.model`` file; ValueError where FEREBUS has no such kernel, or for an atom of no element."""
    labels = dict(model.labels)
    parse_atom(labels["atom"])
    if len(labels["name"].split()) != 1:
        raise ValueError(f"expected one word as the name of the molecule, found {labels['name']!r}")
    kernels: list[list[str]] = []
    composition = _describe(model.kernel, model.x.shape[1], kernels)
    units = ["bohr" if length else "radians" for length in is_length(model.x.shape[1])]
    standardised = [bool(np.any(scaling[0] != 0)) for scaling in (model.x_scaling, model.y_scaling)]
    unit = {"iqa": "Ha", "q00": "e"}.get(labels["property"], "unknown")
    lines = ["# [metadata]", f"# program {labels.get('program', 'iqagp_jax')}", f"# nugget {model.noise!r}"]
    lines += [f"# {key} {labels[key]}" for key in NOTES if key in labels and key != "program"]
    lines += ["", "[system]", f"name {labels['name']}", f"atom {labels['atom']}", f"property {labels['property']}"]
    lines += [f"ALF {' '.join(str(a + 1) for a in model.frame)}", "", "[dimensions]", f"number_of_atoms {model.n_atoms}"]
    lines += [f"number_of_features {model.x.shape[1]}", f"number_of_training_points {len(model.y)}", "", "[mean]"]
    if np.any(model.mean.slopes):
        lines += [f"type {'linear' if model.mean.order == 1 else 'quadratic'}", f"beta {_row(model.mean.slopes)}"]
        lines += [f"xmin {_row(model.mean.origin)}", f"ymin {_row([model.mean.offset])}"]
    else:
        lines += ["type constant", f"value {_row([model.mean.offset])}"]
    lines += ["", "[kernels]", f"number_of_kernels {len(kernels)}", f"composition {composition}", ""]
    for kernel in kernels:
        lines += [*kernel, ""]
    scaling = ["standardise" if s else "none" for s in standardised]
    lines += ["[training_data]", f"units.x {' '.join(units)}", f"units.y {unit}", f"scaling.x {scaling[0]}"]
    lines += [f"scaling.y {scaling[1]}", "", "[training_data.x]", *(_row(row) for row in model.x), ""]
    lines += ["[training_data.y]", *(_row([v]) for v in model.y), "", "[weights]", *(_row([v]) for v in model.weights), ""]
    write_atomically(path, "\n".join(lines))


def _row(values):
    return " ".join(repr(float(v)) for v in values)


def _describe(kernel, d, found):
    """Composition of a kernel; appends the lines of its components to ``found``."""
    if isinstance(kernel, Joint | Product | Sum):
        parts = [_describe(part, d, found) for part in (kernel.first, kernel.second)]
        return f"({('+' if isinstance(kernel, Sum) else '*').join(parts)})"
    name = f"k{len(found) + 1}"
    inner: Any
    columns, inner = (kernel.columns, kernel.kernel) if isinstance(kernel, Select | Restrict) else (tuple(range(d)), kernel)
    lines = [f"[kernel.{name}]", f"type {_kind(inner)}", f"number_of_dimensions {len(columns)}"]
    lines.append(f"active_dimensions {' '.join(str(k + 1) for k in columns)}")
    if isinstance(inner, Constant):
        lines.append(f"value {_row([inner.value])}")
    elif isinstance(inner, Linear):
        lines += [f"order {inner.order}", f"c {_row(inner.scale)}"]
    else:
        lines.append(f"theta {_row(0.5 / np.broadcast_to(inner.lengthscale, len(columns)) ** 2)}")
    found.append(lines)
    return name


def _kind(kernel):
    kinds = {RBF: "rbf", RBFCyclic: "rbf-cyclic", Periodic: "periodic", Linear: "linear", Constant: "constant"}
    if type(kernel) not in kinds:
        raise ValueError(
            f"expected a kernel that FEREBUS has ({', '.join(kinds.values())}), found {type(kernel).__name__};"
            " train with --features alf --kernel rbf-periodic"
        )
    return kinds[type(kernel)]


def write_folder(model, folder, system="MOLECULE", property="iqa"):
    """Write one ``.model`` file for each atom of an `Atomwise` potential or a `gp.model.Model`; returns their paths."""
    atoms = model.atoms if isinstance(model, Atomwise) else atoms_of(model, system, property)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for atom in atoms:
        labels = dict(atom.labels)
        paths.append(folder / f"{labels['name']}_{labels['property']}_{labels['atom']}.model")
        write_model(atom, paths[-1])
    return paths


def atoms_of(model, system="MOLECULE", property="iqa"):
    """The atoms of a `gp.model.Model` as `AtomGP` in FEREBUS' units; ValueError where it has no counterpart there."""
    if not isinstance(model, Model):
        raise ValueError(f"expected a model of Gaussian processes, as FEREBUS has them, found a {type(model).__name__}")
    if not isinstance(model.features, ALF):
        raise ValueError(f"expected ALF features, as FEREBUS has them, found {model.features.name}; train with --features alf")
    if not isinstance(model.mean, ConstantMean):
        raise ValueError(f"expected a constant prior mean, as FEREBUS has them, found {type(model.mean).__name__}")
    if model.residual is None or isinstance(model.noise, tuple):
        raise ValueError(
            f"expected a model of atomic energies alone, as FEREBUS has them, found one of {', '.join(model.targets)};"
            " train with --targets atomic_energies"
        )
    d = model.train_features.shape[2]
    units = np.where(is_length(d), BOHR, 1.0)
    atoms = []
    for a, symbol in enumerate(model.species):
        kernel = _in_units(jax.tree.map(lambda leaf, a=a: leaf[a], model.kernel), units)
        offset = model.mean.values[a] / HARTREE
        labels = {"name": system, "atom": f"{symbol}{a + 1}", "property": property}
        atoms.append(
            AtomGP(
                frame=model.features.frames[a],
                n_atoms=len(model.species),
                kernel=kernel,
                mean=PolynomialMean(np.asarray(offset), np.zeros(d), np.zeros(d)),
                x=model.train_features[a] / units,
                y=model.residual[a] / HARTREE + offset,
                weights=model.weights[a] / HARTREE,
                x_scaling=(np.zeros(d), np.ones(d)),
                y_scaling=(np.zeros(()), np.ones(())),
                units=(units, np.array(HARTREE)),
                noise=model.noise,
                labels=tuple(labels.items()),
            )
        )
    return tuple(atoms)


def _in_units(kernel: Kernel, units):
    """The same kernel for features divided by ``units`` (D,)."""
    if isinstance(kernel, Joint):
        return Joint(_in_units(kernel.first, units), _in_units(kernel.second, units))
    if isinstance(kernel, Select):
        return Select(_in_units(kernel.kernel, units[list(kernel.columns)]), kernel.columns)
    if isinstance(kernel, RBF):
        return RBF(kernel.lengthscale / units)
    if isinstance(kernel, Periodic):
        return kernel
    _kind(kernel)
    raise AssertionError(kernel)

"""The doors."""

from collections.abc import Callable
from dataclasses import dataclass

from doors.damage import AIMALL, BYTES, CSV, EXTXYZ, FEREBUS, JSON, MODEL, NPZ, PACKED, TEXT, WFN, XYZ, of, options
from doors.good import (
    HOT,
    LEARN,
    ROBUSTNESS,
    SIMULATE,
    a_run,
    a_verdict,
    aimall,
    calculate,
    campaign,
    csv,
    model,
    of_aimall,
    of_ferebus,
    of_pyscf,
    of_xtb,
    packed,
    rounds,
    to_train,
    to_validate,
    water_xyz,
    wavefunctions,
)


@dataclass(frozen=True)
class Door:
    """Where input comes in: good input, what is done with it, and the ways to damage it."""

    make: Callable
    """fills the current folder with good input"""
    words: str
    """of the command line, for good input"""
    damages: dict
    """kind -> function of a `random.Random` that damages the current folder; it may return other words"""
    results: tuple = ()
    """patterns of the files that come out; none where no good input is run and all damage must be refused or told"""
    call: Callable | None = None
    """what is done with the words, by default the command line"""
    needs: str = ""
    """folder of the reference files that it needs"""
    share: float = 1.0
    """of its kinds that are tried in a usual run; less where each takes long"""


TRAIN = "train data.extxyz -o out.safetensors --max-steps 0"
VALIDATE = "validate model.safetensors test.extxyz --json out.json --out pictures"
CONVERT = "convert ferebus -o out.safetensors"
ATOM = "train-atom o1.csv -o out.model --alf 1,2,3 --atom O1 --max-steps 0 --random-starts 0"
RESUME = HOT.replace("--time 0.02", "--time 0.03")
LABEL = "label water.xyz -o out.extxyz --method gfn2-xtb --workers 1"
PLANNED = "label water.xyz --campaign new --method hf/sto-3g --partition becke --workers 1"
GO_ON = "label --campaign labels --workers 1"
COLLECT = "campaign collect labels -o out.extxyz"
EXPORT = "export run -o out.extxyz"
SAMPLE = (
    "sample water.xyz -o out.extxyz --metadynamics none --thermal 300:2 --displaced 2 --bond 0 --contact 0 --test none --runs 1"
)
BENCH = "bench --atoms 3 --train 10 --replicas 1 --no-float32 --no-peers"

KEYS = "--energy-key word --forces-key word"
FIT = "--max-steps integer --random-starts integer --seed integer --loss word --optimiser word --kernel word --noise positive"
RUN = "--replicas count --time positive --timestep positive --frame-interval positive --temperature positive --start word"
STARTS = "--displacement number --stretch positive"
STATE = "--charge charge --spin integer --workers count"

DOORS = {
    "train": Door(to_train, TRAIN, of("data.extxyz", EXTXYZ), ("out.safetensors",)),
    "train options": Door(
        to_train,
        TRAIN,
        options(
            TRAIN,
            f"1 file -o new-file --base file {FIT} {KEYS} --features word --prior-mean word --targets word --n-train count"
            " --solver word --partition word --n-hyper count --transfer count",
            "--mirror; --noise energy=1e-8,energy=1e-6;"
            "--noise energy=1e-8,charge=1; --noise energy=nan; --noise energy=; --targets energy,,forces;"
            "--targets energy,energy; --n-hyper 500; --partition becke; --base data.extxyz; --kernel rbf-periodic;"
            "--prior-mean mf5+; --prior-mean mf5+mf1; --solver cg --loss hold-out; -o data.extxyz/x.safetensors",
        ),
        ("out.safetensors",),
    ),
    "validate": Door(to_validate, VALIDATE, of("test.extxyz", EXTXYZ), ("out.json",)),
    "validate options": Door(
        to_validate,
        VALIDATE,
        options(VALIDATE, f"1 file 2 file --split word --json new-file --out new-folder {KEYS}", "--split train --split test"),
        ("out.json",),
    ),
    "convert": Door(of_ferebus, CONVERT, of("ferebus/*.model", FEREBUS), ("out.safetensors",)),
    "convert options": Door(
        of_ferebus,
        CONVERT,
        options(
            CONVERT,
            "1 file -o new-file --property word --convention word",
            "--property (; --property [; --property *; --system X",
        ),
        ("out.safetensors",),
    ),
    "train-atom": Door(csv, ATOM, of("o1.csv", CSV), ("out.model",)),
    "train-atom options": Door(
        csv,
        ATOM,
        options(
            ATOM,
            f"1 file -o new-file {FIT} --alf word --atom word --property word --validation-set file --system name",
            "--alf 1,2; --alf 1,2,2; --alf 0,1,2; --alf 1,2,9; --alf 1,2,3,; --atom Xx1; --atom O; --atom O7",
        ),
        ("out.model",),
    ),
    "model, validate": Door(to_validate, VALIDATE, of("model.safetensors", MODEL), ("out.json",)),
    "model, simulate": Door(model, SIMULATE, of("model.safetensors", MODEL), ("run/trajectory*.npz",)),
    "model, calculator": Door(model, "model.safetensors", of("model.safetensors", MODEL), ("out.npz",), calculate),
    "label": Door(water_xyz, LABEL, of("water.xyz", XYZ), ("out.extxyz",)),
    "label options": Door(
        water_xyz,
        PLANNED,
        options(
            PLANNED,
            f"1 file --campaign new-folder --method word --partition word --executor word --batch count --job word {STATE}",
            "--xc hf; --method hf/; --method /sto-3g; --method hf/nope; --method nope/sto-3g; --method b3lyp-d3/sto-3g;"
            "--partition none --no-forces; --spin 1; --charge 1; --charge 1 --spin 2; --charge 20;"
            "--scheduler x; --executor dask; --executor dask --scheduler nowhere; --executor submitit --job time=;"
            "--executor submitit --job nope=3; --partition none --multipoles; --method hf/sto-3g/sto-3g",
        ),
        ("new/*.json",),
    ),
    "campaign": Door(
        campaign,
        COLLECT,
        of("labels/*.json", JSON) | of("labels/plan.toml", TEXT) | of("labels/water.xyz", XYZ),
        ("out.extxyz",),
    ),
    "campaign, packed": Door(packed, COLLECT, of("labels/labels.jsonl.xz", PACKED), ("out.extxyz",)),
    "campaign, gone on": Door(campaign, GO_ON, of("labels/plan.toml", TEXT), ("labels/*.json",)),
    "campaign options": Door(
        campaign,
        COLLECT,
        options(COLLECT, "2 file -o new-file --beside file", "--beside water.xyz")
        | options("campaign status labels", "2 file")
        | options("campaign stop labels", "2 file", "")
        | options("campaign pack labels", "2 file"),
        ("out.extxyz",),
    ),
    "AIMAll": Door(
        of_aimall, "water.sum .", of("water.sum", AIMALL) | of("*.int", TEXT), ("out.npz",), aimall, needs="aimall_water"
    ),
    "wfn": Door(of_pyscf, "water.wfn", of("water.wfn", WFN), ("out.npz",), wavefunctions),
    "wfx": Door(of_pyscf, "water.wfx", of("water.wfx", TEXT), (), wavefunctions),
    "molden": Door(of_pyscf, "water.molden", of("water.molden", TEXT), ("out.npz",), wavefunctions),
    "resume": Door(
        a_run,
        RESUME,
        of("run/run.json", JSON)
        | of("run/checkpoint.npz", NPZ)
        | of("run/trajectory-0000.npz", NPZ)
        | of("run/run.log", BYTES)
        | of("run/lock", BYTES)
        | of("run/failures.extxyz", TEXT),
        ("run/trajectory*.npz",),
        share=0.5,
    ),
    "simulate options": Door(
        model,
        SIMULATE,
        options(
            SIMULATE,
            f"1 file --out new-folder {RUN} --thermostat word --seed integer --precision word --max-uncertainty positive"
            " --threads count --dataset file",
            "--friction 5; --thermostat langevin --friction nan; --thermostat langevin --friction -1; --thermostat-time 0;"
            "--thermostat langevin --thermostat-time 5; --thermostat-time nan; --displacement 0.1;"
            "--start displaced --displacement nan;"
            "--start displaced --displacement -1; --start displaced --displacement 1e300; --start stretched --stretch nan;"
            "--start stretched --stretch 0; --start stretched --stretch 1e300; --start dataset; --start dataset --dataset nope;"
            "--uncertainty-interval 5; --max-uncertainty 5 --uncertainty-interval nan; --timestep 100; --timestep 0.3;"
            "--max-uncertainty 5 --uncertainty-interval 0; --frame-interval 0.7; --threads 99; --time 0.00001",
        ),
        ("run/trajectory*.npz",),
    ),
    "export": Door(a_run, EXPORT, of("run/trajectory-0000.npz", NPZ), ("out.extxyz",)),
    "export options": Door(
        a_run,
        EXPORT,
        options(EXPORT, "1 file -o new-file --replica integer", "--replica 2; -o out; -o out.xyz; -o out.h5/x.extxyz; -o run"),
        ("out.extxyz",),
    ),
    "robustness": Door(
        a_verdict,
        ROBUSTNESS,
        of("verdict/*.json", JSON) | of("verdict/model/run.json", JSON) | of("verdict/model/*.npz", NPZ),
        ("verdict/robustness.json",),
        share=0.5,
    ),
    "robustness options": Door(
        model,
        ROBUSTNESS,
        options(
            ROBUSTNESS,
            f"1 file --out new-folder --reference word {RUN} --frames count --seed integer --model file {STATE}",
            "--reference xtb; --reference dft; --reference-time 5; --reference-replicas 3; --displacement 0.1; --stretch 2;"
            "--start displaced --displacement nan; --start stretched --stretch nan",
        ),
        ("verdict/robustness.json",),
    ),
    "active": Door(rounds, LEARN, of("rounds/*.json", JSON) | of("rounds/*.extxyz", TEXT), ("rounds/*.extxyz",), share=0.3),
    "active options": Door(
        of_xtb,
        LEARN,
        options(
            LEARN,
            f"1 file 2 file --out new-folder --reference word --rounds count --per-round count --max-uncertainty positive"
            f" --energy-window positive {RUN} --frames count --seed integer {STATE} {KEYS}",
            "--reference dft; --displacement 0.1; --stretch 2",
        ),
        ("rounds/*.extxyz",),
    ),
    "sample": Door(water_xyz, SAMPLE, of("water.xyz", XYZ), ("out.extxyz",)),
    "sample options": Door(
        water_xyz,
        SAMPLE,
        options(
            SAMPLE,
            "1 file -o new-file --metadynamics share --thermal share --test share --displaced integer --bond integer"
            " --contact integer --runs count --charge charge --spin integer --seed integer --variable word",
            "--metadynamics 300:2 --variable distance(0,9); --metadynamics 300:2 --variable distance(0,0); --spin 1;"
            "--metadynamics 300:2 --variable distance(0); --metadynamics 300:2 --variable dihedral(0,1,2,2); --charge 1;"
            "--variable distance(0,1)",
        ),
        ("out.extxyz",),
    ),
    "bench options": Door(
        lambda: None,
        BENCH,
        options(
            BENCH, "--atoms count --train count --replicas count --threads count --json new-file --peer word", "--peer x:y"
        ),
    ),
}

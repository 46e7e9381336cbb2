"""The README's table of figures from a demo's report.json.

iqagp demo --out demo
python scripts/demo_figures.py demo/report.json
"""

import json
import tempfile
from functools import partial
from importlib import import_module
from pathlib import Path

from dialect import parsed


def small_demo():
    """The report of a demo of few geometries, three replicas and a moment."""
    demo = import_module("iqagp_jax.cli.demo")  # the package's name of it is the command
    demo.N_TRAIN, demo.PICOSECONDS, demo.KINDS = 20, 0.1, ["equilibrium", "displaced", "stretched"]
    demo.REPLICAS, demo.fit_gp = len(demo.KINDS), partial(demo.fit_gp, max_steps=0)
    with tempfile.TemporaryDirectory() as folder:
        demo.run_demo(folder)
        return json.loads(Path(folder, "report.json").read_text())


def main():
    options = parsed(__doc__, {"report": {"type": Path, "nargs": "?"}}, {}, {"report": None})
    report = json.loads(options.report.read_text()) if options.report else small_demo()
    when = report["relaxation_fs"]
    bound = "never bound again" if when is None else f"bound again after {when:g} fs"
    atoms = ", ".join(f"{atom} {mae:.2f}" for atom, mae in report["atomic_mae_kcal_mol"].items())
    rows = {
        "training geometries": report["n_train"],
        "energy MAE, 200 unseen geometries at 500 K": f"{report['energy_mae_kcal_mol']:.2f} kcal/mol",
        "force MAE": f"{report['force_mae_kcal_mol_A']:.2f} kcal/mol/Å",
        "atomic energies, MAE in kcal/mol": atoms,
        "replicas alive after the run": f"{report['survived']} of {report['replicas']}",
        "mean temperature, second half": f"{report['temperature_mean_K']:.1f} K of {report['temperature_target_K']:g} K",
        "time per step and replica": f"{report['ms_per_step_per_replica']:.3f} ms",
        "training with hyperparameters": f"{report['train_seconds']:.0f} s",
        f"{report['stretched_bond']} stretched to 1.5 Å": bound,
    }
    print("| | |\n| --- | --- |")
    for name, value in rows.items():
        print(f"| {name} | {value} |")


if __name__ == "__main__":
    main()

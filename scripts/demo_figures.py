"""The README's table of figures from a demo's report.json.

iqagp demo --out demo
python scripts/demo_figures.py demo/report.json
"""

import json
import sys
from pathlib import Path


def main():
    report = json.loads(Path(sys.argv[1]).read_text())
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
        f"{report['stretched_bond']} stretched to 1.5 Å": f"bound again after {report['relaxation_fs']:g} fs",
    }
    print("| | |\n| --- | --- |")
    for name, value in rows.items():
        print(f"| {name} | {value} |")


if __name__ == "__main__":
    main()

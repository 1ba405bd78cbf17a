"""Runs a training program, then notes what its model itself says: run_training.py PROGRAM FILE

The program's names ``model`` and ``rows``, a pandas.DataFrame, are looked at.
"""

import json
import runpy
import sys
from pathlib import Path

names = runpy.run_path(sys.argv[1])
rows, model = names["rows"], names["model"]
trained = {
    "columns": list(rows.columns),
    "data": rows.to_numpy().tolist(),
    "predictions": model.predict(rows).tolist(),
}
Path(sys.argv[2]).write_text(json.dumps(trained))

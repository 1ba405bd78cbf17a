"""Runs a training program and records its model's own predictions: run_training.py PROGRAM FILE

The program must define ``model`` and ``rows``, a pandas.DataFrame.
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

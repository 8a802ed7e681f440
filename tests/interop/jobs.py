"""What every reader of artifacts does around its comparison: jobs in from one JSON file, results out to another."""

import json
import pathlib
import sys
import traceback
from collections.abc import Callable


def answer(compare: Callable[[dict], dict]) -> None:
    """Compares each job of the file that the first argument names; writes the results to that of the second."""
    jobs, results = (pathlib.Path(path) for path in sys.argv[1:])
    answers = []
    for job in json.loads(jobs.read_text(encoding="utf-8")):
        try:
            answers.append(compare(job))
        except Exception as error:  # whatever a reader raises is this artifact's failure, not the others'
            traceback.print_exc()
            message = f"{type(error).__name__}: {' '.join(str(error).split())[-300:]}"
            answers.append({"name": job["name"], "passed": False, "figures": {}, "message": message})
    results.write_text(json.dumps(answers), encoding="utf-8")

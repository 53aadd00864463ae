"""Serves synthetic films from a folder, for tests of another environment; run by the main one.

    python serve_films.py FOLDER PORT '{"model": true, "tokens": true}'

What is not there yet is made: films, a tiny random model, data to train on, tokens. The first line on
stdout is JSON: ``{"tokens": {reader: token}, "classes": [...]}``.
"""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from server_process import TASK, studies, tiny_model  # noqa: E402

from dcaf_monai.phantom import write_films  # noqa: E402
from dcaf_monai.server.access import new_token  # noqa: E402
from dcaf_monai.server.serve import serve  # noqa: E402

READERS = (("ada", "reader"), ("bob", "reader"), ("chief", "admin"))


def main(folder: Path, port: int, wish: dict) -> None:
    """Prepares the folder once, then serves it until it is told to stop."""
    model, tokens, told = folder / "model.safetensors", folder / "tokens", folder / "told.json"
    cutoffs = folder / "cutoffs.json"
    if not told.exists():
        studies(folder / "studies", wish.get("films", 6))
        if wish.get("data"):
            write_films(folder / "data", 16, seed=3, shapes=((96, 80), (80, 112)))
        if wish.get("model"):
            version = tiny_model(model, bias=wish.get("bias", 0.0)).version
            cutoffs.write_text(json.dumps({"model_version": version, "cutoffs": wish.get("cutoffs", {})}))
        keys = {name: new_token(tokens, name, role) for name, role in READERS} if wish.get("tokens") else {}
        told.write_text(json.dumps({"tokens": keys, "classes": list(TASK.classes)}))
    print(told.read_text(), flush=True)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    serve(folder / "studies", model if wish.get("model") else None, port=port, task=TASK.name,
          token_file=tokens if wish.get("tokens") else None,
          data=folder / "data" / "labels.csv" if wish.get("data") else None,
          cutoffs=cutoffs if wish.get("cutoffs") else None,
          auto_score=bool(wish.get("score")))


def _end_with(parent: int) -> None:
    """Ends this process when the tests that started it were killed and could not."""
    while os.getppid() == parent:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3]))

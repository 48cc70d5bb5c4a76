"""``python FOLDER THREADS [BYTES]``: serve the peers of an interpreter that has no pathsum."""

import importlib
import sys
from pathlib import Path

if __name__ == "__main__":
    # The folder above has modules that are not to be found under their bare names: it is looked into for this package.
    sys.path[0] = str(Path(__file__).parent.parent)
    serving = importlib.import_module(f"{Path(__file__).parent.name}.serving")
    sys.path.pop(0)
    if len(sys.argv) > 2:
        import resource

        # Of data, not of addresses: frameworks reserve more of those than there is memory.
        resource.setrlimit(resource.RLIMIT_DATA, (int(sys.argv[2]), int(sys.argv[2])))
    serving.serve(int(sys.argv[1]))

"""Run peers' own tests, as they are, against ``pathsum.compat``: ``python run_peer_tests.py CHECKOUTS [PEER ...]``.

CHECKOUTS is a folder with a checkout of each peer's repository under the name in ``SUITES``; those that are not there
are left out. The tests run on the CPU in a temporary folder, each peer's in a process of its own, with the drop-in
installed in place of the peer or, where the peer is not installed, instead of it. Needs pytest; some tests need
torchaudio, expecttest and parameterized. The table it prints is the one of docs/compat.md.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
SOURCE = HERE.parents[1] / "src"


class Suite(NamedTuple):
    """Tests of a peer.

    Attributes:
        peer: Name of the drop-in.
        checkout: Folder of the peer's repository.
        files: Test files, or folders that hold them and what they import.
        tests: What to run: a script's path, or arguments of pytest.
        script: Whether it is a script that is run, and not pytest.
        without: Tests that are left out, by name, and why.
    """

    peer: str
    checkout: str
    files: tuple[str, ...]
    tests: tuple[str, ...]
    script: bool = False
    without: tuple[tuple[str, str], ...] = ()


def scripts(peer, checkout, folder, names, beside=()):
    """Suites of test scripts, one a file."""
    files = tuple(f"{folder}/{name}" for name in (*names, *beside))
    return [Suite(peer, checkout, files, (name,), script=True) for name in names]


AUDIO = "torchaudio_unittest/functional"
SUITES = [
    Suite(
        "torch_functional",
        "pytorch",
        ("test/test_nn.py", "test/test_modules.py", "test/test_ops.py", "test/test_ops_gradients.py"),
        ("test_nn.py", "test_modules.py", "test_ops.py", "test_ops_gradients.py", "-k", "CTCLoss or ctc_loss"),
        without=(
            ("TestCompositeCompliance", "rules for what torch is made of: no look at values, no memory of its own"),
            ("test_dtypes", "wants half precision refused, which is accepted here"),
        ),
    ),
    Suite(
        "torchaudio",
        "audio",
        ("test/torchaudio_unittest",),
        (f"{AUDIO}/functional_cpu_test.py", f"{AUDIO}/autograd_cpu_test.py", "-k", "rnnt or forced_align"),
        without=(("forced_align_fail", "wants the peer's error texts, some for what is no error here"),),
    ),
    Suite(
        "fast_ctc_decode",
        "fast-ctc-decode",
        ("tests/test_decode.py",),
        ("test_decode.py",),
        without=(("Duplex", "searches over pairs of reads are not here"),),
    ),
    Suite("torch_asg", "torch-asg", ("torch_asg/test/test_asg.py",), ("test_asg.py",)),
    *scripts(
        "optimized_transducer",
        "optimized_transducer",
        "optimized_transducer/python/tests",
        ("test_log_softmax.py", "test_max_symbol_per_frame.py"),
    ),
    Suite(
        "warprnnt_numba",
        "warprnnt_numba",
        ("tests/numba/rnnt_loss/test_rnnt_pytorch.py",),
        ("test_rnnt_pytorch.py",),
    ),
    *scripts("warp_transducer", "warp-transducer", "pytorch_binding/test", ("test.py",), ("transducer_np.py",)),
    Suite("nemo", "NeMo", ("tests/collections/asr/numba/rnnt_loss/test_rnnt_pytorch.py",), ("test_rnnt_pytorch.py",)),
    Suite(
        "nemo",
        "NeMo",
        tuple(
            f"tests/collections/asr/{name}.py"
            for name in ("conftest", "k2/test_graph_transducer", "k2/test_w_transducer")
        ),
        ("test_graph_transducer.py", "test_w_transducer.py", "-k", "TestGraphRnnt or TestGraphWTransducerLoss"),
        without=(("schema", "looks at the peer's graphs"), ("grid_compose_equivalent", "looks at the peer's graphs")),
    ),
    Suite(
        "k2",
        "k2",
        tuple(f"k2/python/tests/{name}_test.py" for name in ("rnnt_loss", "mutual_information", "ctc_loss")),
        ("rnnt_loss_test.py", "mutual_information_test.py", "ctc_loss_test.py"),
        without=(("test_prune_ranges", "calls get_rnnt_prune_ranges_deprecated"),),
    ),
    Suite(
        "fast_rnnt",
        "fast_rnnt",
        tuple(f"fast_rnnt/python/tests/{name}_test.py" for name in ("rnnt_loss", "mutual_information")),
        ("rnnt_loss_test.py", "mutual_information_test.py"),
    ),
    Suite("tf_seq2seq_losses", "tf_seq2seq_losses", ("tests",), ("tests",)),
    Suite(
        "speechbrain",
        "speechbrain",
        ("conftest.py", "tests/unittests/test_losses.py"),
        ("test_losses.py", "-k", "transducer"),
    ),
    Suite(
        "speechbrain",
        "speechbrain",
        ("conftest.py", "tests/integration", "tests/samples"),
        ("integration/ASR_Transducer/example_asr_transducer_experiment.py",),
    ),
    Suite(
        "optax",
        "optax",
        ("optax/losses/_classification_test.py",),
        ("_classification_test.py", "-k", "CTCTest"),
    ),
]


def run(suite, checkouts, verbose):
    """The outcome of a suite: counts by pytest's words, and its output."""
    with tempfile.TemporaryDirectory() as folder:
        for name in suite.files:
            source = checkouts / suite.checkout / name
            copy = shutil.copytree if source.is_dir() else shutil.copy
            copy(source, Path(folder) / source.name)
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(SOURCE), str(HERE), os.environ.get("PYTHONPATH", "")]),
            "PATHSUM_INSTALL": suite.peer,
            "CUDA_VISIBLE_DEVICES": "",
        }
        if suite.script:
            code = f"import sys, runpy, drop_in; sys.argv = ['{suite.tests[0]}']; sys.path.insert(0, '.');"
            command = [sys.executable, "-c", f"{code} runpy.run_path(sys.argv[0], run_name='__main__')"]
        else:
            chosen = [*suite.tests]
            if suite.without:
                rule = " and ".join(f"not {name}" for name, _ in suite.without)
                chosen += ["-k", f"({chosen[-1]}) and {rule}" if "-k" in chosen else rule]
            command = [sys.executable, "-m", "pytest", "-p", "drop_in", "-rs", "-q", "--tb=short", *chosen]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    output = done.stdout + done.stderr
    if verbose or (done.returncode not in (0, 5)):
        print(output)
    if suite.script:
        return {"passed" if done.returncode == 0 else "failed": 1}
    # Not always the last line: libraries may have something to say behind it.
    summaries = [line for line in output.splitlines() if re.search(r"\d+ \w+.* in [\d.:]+", line)]
    if not summaries:
        return {"error": 1}
    words = re.findall(r"(\d+) (passed|failed|skipped|deselected|error)", summaries[-1])
    return {word: int(count) for count, word in words}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkouts", type=Path)
    parser.add_argument("peers", nargs="*")
    parser.add_argument("-v", "--verbose", action="store_true", help="print what passes too")
    arguments = parser.parse_args()
    failed = False
    for suite in SUITES:
        if arguments.peers and suite.peer not in arguments.peers:
            continue
        what = f"{suite.checkout:22}{suite.tests[0].rpartition('/')[2]:36}"
        if not (arguments.checkouts / suite.checkout).exists():
            print(f"{what}no checkout")
            continue
        counts = run(suite, arguments.checkouts, arguments.verbose)
        failed |= not counts or bool({"failed", "error"} & counts.keys())
        print(what + ", ".join(f"{count} {word}" for word, count in counts.items()), flush=True)
        for name, reason in suite.without:
            print(f"    without {name}: {reason}")
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())

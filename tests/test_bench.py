"""The benchmarks on tiny shapes: the gate, the rows, the plots, and peers in other processes."""

import dataclasses
import gc
import importlib
import json
import pkgutil
import shutil
import sys
from contextlib import nullcontext

import numpy as np
import pytest

torch = pytest.importorskip("torch")
for extra in ("matplotlib", "rich"):
    pytest.importorskip(extra)

import pathsum.kernels.numba  # noqa: E402
from pathsum import cli  # noqa: E402
from pathsum.bench import cases, contenders, gate, librispeech, measure, peers, report  # noqa: E402
from pathsum.bench import run as run_module  # noqa: E402
from pathsum.bench.cases import GROUPS, TIMED, Case, make_problem  # noqa: E402
from pathsum.bench.peers import losses  # noqa: E402
from pathsum.bench.rows import Row, Run, read_latest  # noqa: E402
from pathsum.torch import rnnt_joint_loss  # noqa: E402

FIELDS = [field.name for field in dataclasses.fields(Row)]
TINY_CTC = Case("ctc", "ctc_loss", "logits", (2, 20, 5, 8), "ragged")


def rows_in(folder, group):
    return [json.loads(line) for line in (folder / f"{group}.jsonl").read_text().splitlines()]


def let_garbage_be():
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def few_objects():
    """Those of frameworks, and of the tests before, are not gone through when garbage is collected before a step."""
    let_garbage_be()
    yield
    let_garbage_be()


@pytest.fixture(scope="module")
def ours():
    return [contender for contender in contenders.gather({}) if contender.name == "pathsum"]


@pytest.fixture
def uncompiled():
    """Processes started meanwhile run kernels as plain Python, which on tiny input is faster than to compile them."""
    # What this process imported meanwhile would be plain Python in it for good, between kernels that are not.
    for module in pkgutil.iter_modules(pathsum.kernels.numba.__path__):
        importlib.import_module(f"pathsum.kernels.numba.{module.name}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NUMBA_DISABLE_JIT", "1")
        yield


def measured(folder, *groups):
    """The folder, with quick rows of some groups."""
    assert cli.main(["bench", *groups, "--quick", "--peers", "torch", "--threads", "1", "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    return measured(tmp_path_factory.mktemp("bench"), *TIMED, "accuracy")


# Every kind and length of a case, and every loss, once; each compiles its program.
@pytest.mark.parametrize("framework, group", [("jax", "ctc"), ("jax", "small"), ("tensorflow", "simple_ctc")])
def test_the_losses_for_other_frameworks_are_measured_where_asked_for(group, framework, tmp_path, capsys):
    pytest.importorskip(framework)
    name = f"pathsum-{framework}"
    options = ["--quick", "--peers", name, "--repeats", "1", "--threads", "1", "--out", str(tmp_path)]
    assert cli.main(["bench", group, *options]) == 0
    found = [row for row in rows_in(tmp_path, group) if row["impl"] == name]
    assert {row["direction"] for row in found} == {"forward", "both"}
    assert {(row["kind"], row["lengths"]) for row in found} == {
        (case.kind, case.lengths) for case in cases.cases(group, quick=True)
    }


@pytest.mark.parametrize("group", [*TIMED, "accuracy"])
def test_rows_have_the_whole_schema(recorded, group):
    rows = rows_in(recorded, group)
    assert {row["op"] for row in rows} == {case.op for case in cases.cases(group, quick=True)}
    for row in rows:
        assert list(row) == FIELDS
        assert row["group"] == group
        assert row["impl"] in peers.PEERS
        assert len(row["shape"]) == 4
        assert (row["device"], row["threads"], row["process"]) == ("cpu", 1, "shared")
        assert row["cpu"]
        assert row["timestamp"].endswith("+00:00")
        assert {"python", "numpy", "numba", "torch", "pathsum"} <= row["versions"].keys()
        assert row["versions"]["torch"] == torch.__version__


def test_halves_are_measured_beside_float32_and_their_gradients_are_rounded(recorded):
    rows = rows_in(recorded, "half")
    assert [row["dtype"] for row in rows if row["impl"] == "copy"] == ["float32", "bfloat16", "float16"] * 2
    failed = {row["dtype"] for row in rows if row["failure"] is not None}
    assert failed == {"bfloat16", "float16"}  # torch's, which takes none of them
    problem = make_problem(dataclasses.replace(TINY_CTC, dtype="bfloat16"))
    step, truth = peers.PEERS["pathsum"].prepare(problem)(), gate.Truth(problem)
    assert gate.GRADIENT_BARS["ctc_loss"] < truth.errors("pathsum", step).gradient < gate.ROUNDING["bfloat16"]
    wrong = step._replace(gradient=step.gradient + np.float32(4e-3))
    assert not truth.accepts("pathsum", truth.errors("pathsum", wrong))


def test_timed_rows_hold_the_directions_and_ratios_of_every_contender(recorded):
    rows = rows_in(recorded, "ctc")
    for case in cases.cases("ctc", quick=True):
        mine = [row for row in rows if (row["kind"], row["lengths"]) == (case.kind, case.lengths)]
        directions = [(row["impl"], row["direction"]) for row in mine]
        expected = [(name, way) for name in ("pathsum", "torch") for way in ("forward", "backward", "both")]
        assert directions == [*expected, ("copy", "both")]
        copy = mine[-1]["median_ms"]
        for row in mine:
            assert 0 < row["p20_ms"] <= row["median_ms"] <= row["p80_ms"]
            assert row["repeats"] == 3
            assert row["ratio_to_copy"] == pytest.approx(row["median_ms"] / copy, rel=1e-3)
            if row["impl"] == "pathsum":
                assert row["ratio_to_ours"] == 1


def test_a_loss_made_of_several_is_measured_beside_one(recorded):
    for group, kinds in (("mwer", {"logits"}), ("graphs", {"ctc"})):
        rows = rows_in(recorded, group)
        assert {row["kind"] for row in rows if row["impl"] == "pathsum-ctc"} == kinds
        assert all(row["failure"] is None for row in rows)


def test_decoders_have_times_and_word_error_rates(tmp_path, capsys):
    options = ["--quick", "--repeats", "1", "--threads", "1", "--peers", "fast-ctc-decode", "--out", str(tmp_path)]
    assert cli.main(["bench", "decode", *options]) == 0
    rows = rows_in(tmp_path, "decode")
    assert [row["kind"] for row in rows if row["impl"] == "pathsum"] == ["labels", "words", "list"]
    for row in rows:
        if row["failure"] is None:
            assert row["median_ms"] > 0
            assert 0 <= row["word_error_rate"] < 0.5
    if not peers.installed("fast_ctc_decode"):
        (missing,) = [row for row in rows if row["impl"] == "fast-ctc-decode"]
        assert missing["failure"] == "error: ModuleNotFoundError: No module named 'fast_ctc_decode'"
    assert "| us a frame" not in capsys.readouterr().out
    assert cli.main(["bench", "--show", str(tmp_path)]) == 0
    assert "| us a frame | wrong words, % |" in capsys.readouterr().out


@pytest.mark.parametrize("change", [lambda labels: labels[:1] * 9, lambda labels: labels[:-1]])
def test_a_decoder_is_held_to_the_log_probability_of_what_it_found(change):
    problem = make_problem(Case("decode", "ctc_beam_decode", "words", (1, 40, 20, 29)))
    truth, step = gate.Truth(problem), peers.PEERS["pathsum"].prepare(problem)()
    assert truth.accepts("pathsum", truth.errors("pathsum", step))
    step = step._replace(labels=[change(labels) for labels in step.labels])
    assert not truth.accepts("pathsum", truth.errors("pathsum", step))


def test_accuracy_rows_hold_errors(recorded):
    for row in rows_in(recorded, "accuracy"):
        assert 0 < row["max_abs_error"] < (2e-6 if row["impl"] == "pathsum" else 1e-2)
        assert 0 < row["relative_error"]
        assert row["median_ms"] is None


@pytest.fixture(scope="module")
def recorded_steps(tmp_path_factory):
    # Peaks of all in one process, which is a second to start; that there is one for each is seen on the rows of memory.
    with contenders.Worker(sys.executable, 1) as worker, pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "_apart", lambda *_: nullcontext(worker))
        return measured(tmp_path_factory.mktemp("bench"), "rnnt-librispeech", "--repeats", "1")


def test_steps_of_a_joiner_have_times_and_peaks(recorded_steps):
    rows = rows_in(recorded_steps, "rnnt-librispeech")
    forms = {"initial": ["pathsum", "pathsum-packed", "pathsum-padded"], "peaky": ["pathsum", "pathsum-packed"]}
    for kind, names in forms.items():
        mine = [row for row in rows if row["kind"] == kind]
        expected = [(name, way) for name in names for way in ("forward", "backward", "both")]
        assert [(row["impl"], row["direction"]) for row in mine] == expected
        for row in mine:
            assert list(row) == FIELDS
            assert row["median_ms"] > 0
            assert (row["peak_mib"] is not None) == (row["direction"] == "both")


def test_steps_of_a_joiner_are_shown(recorded_steps, capsys):
    assert cli.main(["bench", "--show", str(recorded_steps)]) == 0
    text = capsys.readouterr().out
    assert "| initial, ragged (2, 10, 4, 6) | pathsum |" in text
    assert (recorded_steps / "rnnt-librispeech.png").exists()


def test_what_takes_long_is_measured_on_request_alone(monkeypatch, tmp_path):
    measured = []
    monkeypatch.setattr(run_module, "_measure", lambda todo, *_: measured.extend(todo) or 0)
    assert cli.main(["bench", "--quick", "--peers", "torch", "--out", str(tmp_path)]) == 0
    assert measured == [group for group in GROUPS if group not in cases.ON_REQUEST]


def test_help_names_every_group(capsys):
    with pytest.raises(SystemExit):
        cli.main(["bench", "--help"])
    assert set(GROUPS) <= set(capsys.readouterr().out.split())


@pytest.mark.parametrize("group", [*TIMED, "accuracy"])
def test_a_plot_is_written(recorded, group):
    from matplotlib.image import imread

    pixels = imread(recorded / f"{group}.png")
    assert min(pixels.shape[:2]) > 200
    assert pixels[..., :3].std() > 0.02


def test_show_prints_what_was_recorded_and_draws_it_anew(recorded, capsys):
    (recorded / "rnnt.png").unlink()
    assert cli.main(["bench", "--show", str(recorded)]) == 0
    assert (recorded / "rnnt.png").exists()
    text = capsys.readouterr().out
    titles = [line.partition(":")[0] for line in text.splitlines() if line and not line.startswith("|")]
    assert titles == [*TIMED, "accuracy"]
    assert "| ctc_loss (2, 20, 5, 8), full | pathsum |" in text


def test_show_says_that_there_are_no_rows(tmp_path, capsys):
    assert cli.main(["bench", "--show", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"pathsum bench: no rows in {tmp_path}\n"


def test_show_takes_the_last_run(recorded, tmp_path):
    lines = (recorded / "ctc.jsonl").read_text().splitlines()
    old = [json.dumps({**json.loads(line), "timestamp": "2001-01-01T00:00:00+00:00"}) for line in lines]
    (tmp_path / "ctc.jsonl").write_text("\n".join([*old, *lines]) + "\n")
    assert len(read_latest(tmp_path)) == len(lines)


def broken_gradient(problem):
    step = losses.prepare_pathsum(problem)

    def wrong():
        milliseconds, loss, gradient, _ = step()
        return peers.Step(milliseconds, loss, gradient + np.float32(1e-4))

    return wrong


def broken_loss(problem):
    step = losses.prepare_pathsum(problem)
    return lambda: step()._replace(loss=float("nan"))


@pytest.mark.parametrize("broken", [broken_gradient, broken_loss])
def test_a_red_gate_measures_nothing(broken, monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(peers.PEERS, "pathsum", peers.PEERS["pathsum"]._replace(prepare=broken))
    assert cli.main(["bench", "rnnt", "--quick", "--peers", "torch", "--out", str(tmp_path)]) == 1
    assert "gate: red" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def halved(problem):
    step = losses.prepare_torch(problem)
    return lambda: step()._replace(loss=step().loss / 2)


def raising(error):
    def prepare(_):
        raise error

    return prepare


@pytest.mark.parametrize(
    "prepare, reason",
    [
        (halved, "wrong value: off by"),
        (raising(MemoryError("32 GB")), "memory: MemoryError: 32 GB"),
        (raising(RuntimeError("no [/bold]\nkernel")), "error: RuntimeError: no [/bold] kernel"),
    ],
    ids=["value", "memory", "error"],
)
def test_a_peer_that_fails_is_a_row_that_says_so(prepare, reason, monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(peers.PEERS, "torch", peers.PEERS["torch"]._replace(prepare=prepare))
    options = ["--quick", "--repeats", "1", "--peers", "torch", "--out", str(tmp_path)]
    assert cli.main(["bench", "ctc", *options]) == 0
    assert reason in capsys.readouterr().out
    rows = rows_in(tmp_path, "ctc")
    failed = [row for row in rows if row["failure"] is not None]
    assert {row["impl"] for row in failed} == {"torch"}
    assert len(failed) == len(cases.cases("ctc", quick=True))
    assert all(row["failure"].startswith(reason) and row["median_ms"] is None for row in failed)
    assert {row["impl"] for row in rows if row["median_ms"]} == {"pathsum", "copy"}
    assert cli.main(["bench", "--show", str(tmp_path)]) == 0
    assert reason in capsys.readouterr().out


def failing_at(call):
    """A peer whose steps go well until one of them, the first being 0."""

    def prepare(problem):
        step, done = losses.prepare_torch(problem), []

        def failing():
            done.append(None)
            if len(done) > call:
                raise RuntimeError(f"step {call}")
            return step()

        return failing

    return prepare


# The gate makes one step; the turns begin anew: one that tells how long it takes, then two a turn.
@pytest.mark.parametrize("stage", range(4))
def test_a_peer_that_fails_in_its_turns_is_a_row_and_the_others_are_measured(stage, monkeypatch):
    case = Case("ctc", "ctc_loss", "logits", (2, 20, 5, 8), "ragged")
    monkeypatch.setitem(peers.PEERS, "torch", peers.PEERS["torch"]._replace(prepare=failing_at(stage)))
    taking_part = contenders.gather({}, frozenset({"torch"}))
    rows = measure.time_rows(case, taking_part, Run.begin(1), repeats=3)
    (failed,) = [row for row in rows if row.failure is not None]
    assert (failed.impl, failed.failure, failed.median_ms) == ("torch", f"error: RuntimeError: step {stage}", None)
    measured = {row.impl: row for row in rows if row.failure is None}
    assert measured.keys() == {"pathsum", "copy"}
    assert all(row.repeats == 3 for row in measured.values())


def test_ours_that_fails_in_its_turns_ends_the_run(monkeypatch):
    monkeypatch.setitem(peers.PEERS, "pathsum", peers.PEERS["pathsum"]._replace(prepare=failing_at(1)))
    with pytest.raises(RuntimeError, match="step 1"):
        measure.time_rows(TINY_CTC, contenders.gather({}, frozenset()), Run.begin(1), repeats=3)


@pytest.mark.parametrize("task_to_fail", ["load", "step", "peak"])
def test_a_peer_that_fails_where_memory_is_measured_is_a_row(task_to_fail, monkeypatch):
    class FakeWorker:
        def ask(self, task, peer, **_):
            if peer == "torch" and task == task_to_fail:
                raise contenders.WorkerError("std::bad_alloc")
            return {"peak_kib": 100.0}

    monkeypatch.setattr(measure, "_apart", lambda *_: nullcontext(FakeWorker()))
    taking_part = contenders.gather({}, frozenset({"torch"}))
    case = Case("memory", "ctc_loss", "logits", (1, 3, 1, 3))
    ours, failed = measure.memory_rows(case, taking_part, Run.begin(1))
    assert ours.peak_mib == 100 / 1024
    assert (failed.impl, failed.failure, failed.peak_mib) == ("torch", "memory: std::bad_alloc", None)
    (table,) = report.tables([ours, failed])
    assert "| torch | memory: std::bad_alloc |" in report.as_markdown(table)


def test_a_step_without_its_peak_keeps_its_times(monkeypatch):
    ours, peer = (contenders.Contender(name, {}) for name in ("pathsum", "torchaudio"))
    taken = [{"forward": 1.0, "backward": 2.0, "both": 3.0}]
    peaks = {"pathsum": 2.0**21}, 2**20, {"torchaudio": "time: no answer within 300 s"}
    monkeypatch.setattr(measure, "_turns", lambda *_: ([(ours, taken), (peer, taken)], {}))
    monkeypatch.setattr(measure, "_peaks", lambda *_: peaks)
    case = Case("rnnt-librispeech", "rnnt_joint_loss", "initial", (1, 3, 1, 4), "ragged")
    rows = measure.step_rows(case, [ours, peer], Run.begin(1), repeats=1)
    text = report.as_markdown(report.tables(rows)[0])
    assert "| torchaudio | 1 | 2 | 3 (3-3) |  | 1 |" in text
    assert "| torchaudio | time: no answer within 300 s |" in text


@pytest.mark.usefixtures("uncompiled")
def test_a_process_over_its_memory_or_time_is_told(tmp_path):
    problem = make_problem(TINY_CTC)
    peers.save(problem, tmp_path)
    with (
        contenders.Worker(sys.executable, 1, memory_bytes=2**26) as worker,
        pytest.raises(contenders.WorkerError),
    ):
        worker.ask("load", peer="torch", folder=str(tmp_path))
    with (
        contenders.Worker(sys.executable, 1, seconds=0.01) as worker,
        pytest.raises(contenders.WorkerError, match="time: no answer within"),
    ):
        worker.ask("load", peer="torch", folder=str(tmp_path))


def test_an_inaccurate_gradient_fails_the_accuracy_group(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(peers.PEERS, "pathsum", peers.PEERS["pathsum"]._replace(prepare=broken_gradient))
    assert cli.main(["bench", "accuracy", "--quick", "--peers", "torch", "--out", str(tmp_path)]) == 1
    assert "beyond its bar" in capsys.readouterr().out


@pytest.mark.parametrize("op", ["ctc_loss", "simple_ctc_loss", "rnnt_loss", "rnnt_packed_loss", "asg_loss", "tdt_loss"])
def test_truth_is_within_rounding_of_ours_in_float64(op, ours):
    problem = make_problem(Case("first_call", op, "logits", (3, 12, 4, 6), "ragged"))
    truth = gate.Truth(problem)
    exact = ours[0].solve(problem._replace(dtype="float64"), None)
    errors = truth.errors("pathsum", exact)
    assert errors.gradient < 1e-12
    assert errors.loss < 1e-12


@pytest.mark.parametrize("kind", ["initial", "peaky"])
def test_truth_of_a_joiner_is_within_rounding_of_the_reference(kind):
    problem = make_problem(Case("rnnt-librispeech", "rnnt_joint_loss", kind, (3, 12, 4, 6), "ragged"))
    truth = gate.Truth(problem)
    leaves = [torch.from_numpy(operand).double().requires_grad_() for operand in problem.operands]
    loss = rnnt_joint_loss(*leaves, *problem.integers, blank=problem.blank, reduction="sum", impl="reference")
    gradient = torch.autograd.grad(loss, leaves)[0]
    assert truth.loss == pytest.approx(loss.item(), rel=1e-12)
    np.testing.assert_allclose(truth.gradient("pathsum"), gradient.numpy(), atol=1e-12)


def test_the_public_comparison_has_its_lengths():
    batches = [librispeech.batch_lengths(k, librispeech.BATCH_SIZE) for k in range(librispeech.NUM_BATCHES)]
    assert {batch.shape for batch in batches} == {(30, 2)}
    assert batches[0][0].tolist() == [369, 96]
    nodes = [(batch[:, 0] * (batch[:, 1] + 1)).sum() for batch in batches]
    # What others have counted: 0.681 million on average, 0.768 at most.
    assert np.round([np.mean(nodes), max(nodes)], -3).tolist() == [681_000, 768_000]


def test_peaky_operands_follow_their_alignment():
    case = Case("rnnt-librispeech", "rnnt_joint_loss", "peaky", (2, 40, 6, 50), "ragged")
    problem = make_problem(case)
    leaves = [torch.from_numpy(operand) for operand in problem.operands]
    losses = rnnt_joint_loss(*leaves, *problem.integers, blank=problem.blank, reduction="none")
    assert losses.max() < 1.0
    problem = make_problem(dataclasses.replace(case, kind="initial"))
    leaves = [torch.from_numpy(operand) for operand in problem.operands]
    assert rnnt_joint_loss(*leaves, *problem.integers, blank=problem.blank, reduction="none").min() > 20.0


@pytest.mark.parametrize("batches, utterances", [(20, 30), (2, 3)])
def test_batches_can_be_reduced(batches, utterances):
    listed = cases.cases("rnnt-librispeech", batches=batches, utterances=utterances)
    assert [case.lengths for case in listed] == [f"batch {k}" for k in range(batches)] * 2
    assert {(case.shape[0], case.shape[3]) for case in listed} == {(utterances, 500)}


def test_batches_are_reported_as_one():
    run = Run.begin(1)
    listed = cases.cases("rnnt-librispeech", batches=2, utterances=3)[:2]
    rows = [
        run.row(case, impl, {}, "shared", median_ms=time * (k + 1), p20_ms=1.0, p80_ms=9.0, peak_mib=peak + k)
        for impl, time, peak in (("pathsum", 100.0, 20.0), ("pathsum-packed", 250.0, 3000.0))
        for k, case in enumerate(listed)
    ]
    (table,) = report.tables(rows)
    text = report.as_markdown(table)
    assert "| initial, 2 batches (3, 434, 96, 500) | pathsum |  |  | 150 (120-180) | 21 | 1 |" in text
    assert "|  | pathsum-packed |  |  | 375 (300-450) | 3001 | 2.5 |" in text


def test_problems_are_the_same_for_the_same_seed():
    first, again, other = (make_problem(TINY_CTC, seed) for seed in (0, 0, 1))
    assert np.array_equal(first.scores, again.scores)
    assert np.array_equal(first.targets, again.targets)
    assert not np.array_equal(first.scores, other.scores)
    assert first.input_lengths.max() == 20 > first.input_lengths.min()


def test_log_probs_are_normalised():
    problem = make_problem(dataclasses.replace(TINY_CTC, kind="log_probs"))
    np.testing.assert_allclose(np.exp(problem.scores).sum(-1), 1, rtol=1e-6)


@pytest.mark.usefixtures("uncompiled")
def test_a_peer_in_another_process_gives_what_it_gives_here():
    problem = make_problem(TINY_CTC)
    here = losses.prepare_torch(problem)()
    with contenders.Worker(sys.executable, 1) as worker:
        description = worker.ask("describe")
        assert "torch" in description["peers"]
        there = contenders.Contender("torch", description["versions"], sys.executable, worker)
        with measure.handed_over(problem, [there]) as folder:
            step = there.solve(problem, folder)
            assert there.prepare(problem, folder)().milliseconds.keys() == {"forward", "backward", "both"}
    assert step.loss == pytest.approx(here.loss, rel=1e-6)
    np.testing.assert_allclose(step.gradient, here.gradient, atol=1e-6)


@pytest.mark.usefixtures("uncompiled")
def test_what_goes_wrong_in_another_process_is_told():
    with contenders.Worker(sys.executable, 1) as worker:
        with pytest.raises(contenders.WorkerError, match="unknown request 'dance'"):
            worker.ask("dance")
    with (
        contenders.Worker(shutil.which("false") or "", 1) as worker,
        pytest.raises(contenders.WorkerError, match="without an answer"),
    ):
        worker.ask("describe")


@pytest.mark.usefixtures("uncompiled")
def test_a_process_that_has_ended_is_started_again_for_the_next_problem(tmp_path):
    peers.save(make_problem(TINY_CTC), tmp_path)
    with contenders.Worker(sys.executable, 1) as worker:
        worker._process.kill()
        worker._process.wait()
        with pytest.raises(contenders.WorkerError, match="without an answer"):
            worker.ask("step", peer="torch")
        worker.ask("load", peer="torch", folder=str(tmp_path))
        assert worker.ask("step", peer="torch")["loss"] > 0


@pytest.mark.usefixtures("uncompiled")
def test_memory_rows_measure_in_fresh_processes(ours):
    # torch's, since kernels run as plain Python here: logits of 8 MB, their log-softmax and two gradients.
    torch_alone = [contender for contender in contenders.gather({}) if contender.name == "torch"]
    case = Case("memory", "ctc_loss", "logits", (4, 50, 5, 10_000))
    (row,) = measure.memory_rows(case, torch_alone, Run.begin(1))
    assert row.process == "fresh"
    assert row.peak_mib is not None
    assert 7 < row.peak_mib < 60
    assert row.share_beyond_gradient == pytest.approx(row.peak_mib * 2**20 / (4 * 50 * 10_000 * 4) - 1)
    assert ours[0].can_run(case.op, case.kind)


@pytest.mark.usefixtures("uncompiled")
def test_first_call_rows_are_cold_then_warm(ours):
    case = Case("first_call", "rnnt_loss", "logits", (1, 3, 1, 3))
    cold, warm = measure.first_call_rows(case, ours, Run.begin(1), repeats=1)
    assert (cold.cache, warm.cache) == ("cold", "warm")
    assert cold.median_ms is not None
    assert cold.median_ms > 0
    assert cold.process == warm.process == "fresh"


def test_every_group_has_cases_that_someone_can_run():
    for group in GROUPS:
        for quick in (False, True):
            listed = cases.cases(group, quick)
            assert listed
            assert len(set(listed)) == len(listed)
            assert all((case.op, case.kind) in peers.PEERS["pathsum"].runs for case in listed)


def test_tables_of_memory_and_first_calls_can_be_printed(ours):
    run = Run.begin(1)
    case = Case("memory", "rnnt_loss", "logits", (1, 3, 1, 3))
    memory = run.row(case, "pathsum", ours[0].versions, "fresh", peak_mib=3.0, share_beyond_gradient=0.031)
    case = dataclasses.replace(case, group="first_call")
    first = run.row(case, "pathsum", {}, "fresh", median_ms=12.0, p20_ms=11.0, p80_ms=13.0, cache="warm")
    texts = [report.as_markdown(table) for table in report.tables([memory, first])]
    assert "| rnnt_loss (1, 3, 1, 3) | pathsum | 3.0 | 3.1 |  |" in texts[0]
    assert "| rnnt_loss (1, 3, 1, 3), warm cache | pathsum | 12 (11-13) | 1 |" in texts[1]

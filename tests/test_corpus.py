"""Corpora: each utterance once, whatever happens to the run, and the same lines as if nothing had."""

import collections
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from pathsum import cli
from pathsum.utterances import align
from pathsum.utterances.corpus import manifest, work
from pathsum.utterances.corpus.run import run
from pathsum.utterances.inputs import UtteranceError, load_reading

forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
OPTIONS = ("--tokens", "- ab", "--frame-seconds", "0.5")
COUNT = 40


def scores_of(*classes):
    return np.log(np.where(np.eye(4)[list(classes)] > 0, 0.91, 0.03)).astype(np.float32)


@pytest.fixture
def corpus(tmp_path):
    """Forty utterances; the lengths differ, so that no two lines are alike."""
    folder = tmp_path / "corpus"
    (folder / "scores").mkdir(parents=True)
    lines = []
    for k in range(COUNT):
        np.save(folder / "scores" / f"{k}.npy", scores_of(2, 3, 1, 2, *[0] * k))
        lines.append({"id": f"u{k}", "scores": f"scores/{k}.npy", "text": "ab a"})
    write_manifest(folder / "all.jsonl", lines)
    return folder


def write_manifest(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def results(folder, name="align"):
    return (folder / f"{name}.jsonl").read_bytes().splitlines(keepends=True)


def by_id(lines):
    found = [json.loads(line) for line in lines]
    assert len({each["id"] for each in found}) == len(found)
    return {each["id"]: each for each in found}


class SlowJob(align.AlignJob):
    """Leaves time to be killed in, and notes each utterance that it works on."""

    notes = None

    def __call__(self, entry):
        with open(self.notes, "a") as file:
            file.write(f"{entry.id}\n")
        time.sleep(0.0005)
        return super().__call__(entry)


def slow_job(notes):
    job = SlowJob(load_reading(None, "- ab", None, 0, 0.5, False), {})
    SlowJob.notes = notes
    return job


def quietly(job, source, out, **options):
    with open(os.devnull, "w") as nowhere:
        return run(job, str(source), str(out), console=Console(file=nowhere), **options)


def test_each_utterance_has_a_line_that_one_file_alone_would_have(corpus, tmp_path, capsys):
    out = tmp_path / "out"
    assert cli.main(["align", str(corpus / "all.jsonl"), *OPTIONS, "--processes", "1", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert f"aligned {COUNT} utterances in" in printed
    assert "a second; wrote" in printed
    found = by_id(results(out))
    assert list(found) == [f"u{k}" for k in range(COUNT)]
    assert cli.main(["align", str(corpus / "scores" / "7.npy"), "ab a", *OPTIONS, "--out", str(tmp_path)]) == 0
    alone = json.loads((tmp_path / "7.json").read_text())
    assert found["u7"] == {"id": "u7", **{key: value for key, value in alone.items() if key != "name"}}
    # Nothing is left to be done.
    before = results(out)
    assert cli.main(["align", str(corpus / "all.jsonl"), *OPTIONS, "--processes", "1", "--out", str(out)]) == 0
    assert results(out) == before
    assert f"aligned 0 utterances in 0.0 s; {COUNT} had been done before" in capsys.readouterr().out


def test_a_folder_is_a_corpus_with_texts_beside_the_scores(corpus, tmp_path):
    (corpus / "all.jsonl").unlink()
    for k in range(COUNT):
        (corpus / "scores" / f"{k}.txt").write_text("ab\na\n" if k else "ab a")
    np.save(corpus / "textless.npy", scores_of(2, 3))
    assert cli.main(["align", str(corpus), *OPTIONS, "--processes", "1", "--out", str(tmp_path / "out")]) == 1
    found = by_id(results(tmp_path / "out"))
    assert list(found)[:3] == ["textless", "scores/0", "scores/1"]
    assert found["textless"]["error"].startswith("it has no text, nor is there a file ")
    assert found["scores/3"]["seconds"] == 3.5
    assert cli.main(["decode", str(corpus), *OPTIONS, "--processes", "1", "--out", str(tmp_path / "out")]) == 0
    found = by_id(results(tmp_path / "out", "decode"))
    assert found["textless"]["text"] == "ab"
    assert found["scores/39"]["text"] == "ab a"
    assert found["scores/39"]["words"][0] == {"text": "ab", "start": 0, "end": 1, "confidence": pytest.approx(0.91)}


@forks
def test_several_processes_write_the_same_lines(corpus, tmp_path):
    job = align.AlignJob(load_reading(None, "- ab", None, 0, 0.5, False), {})
    assert quietly(job, corpus / "all.jsonl", tmp_path / "one", processes=1) == 0
    assert quietly(job, corpus / "all.jsonl", tmp_path / "three", processes=3) == 0
    assert sorted(results(tmp_path / "one")) == sorted(results(tmp_path / "three"))


@forks
@pytest.mark.parametrize("processes, hold", [(1, 0), (2, 0), (2, work.HOLD)])
def test_a_run_that_is_killed_ten_times_ends_as_one_that_is_not(processes, hold, corpus, tmp_path, monkeypatch):
    """Each run is killed behind a random number of lines or earlier, the next goes on; torn lines are mended."""
    monkeypatch.setattr(work, "HOLD", hold)
    torch.set_num_threads(1)  # a fork has none of the others
    undisturbed = tmp_path / "undisturbed"
    assert quietly(slow_job(tmp_path / "notes-0"), corpus / "all.jsonl", undisturbed, processes=1) == 0
    out, notes = tmp_path / "out", tmp_path / "notes"
    rng = random.Random(processes)
    killed = 0
    for _ in range(10):
        pid = os.fork()
        if not pid:
            try:
                quietly(slow_job(notes), corpus / "all.jsonl", out, processes=processes)
            finally:
                os._exit(0)
        at = sum(1 for _ in open(notes)) if notes.exists() else 0
        while notes.exists() is False or sum(1 for _ in open(notes)) < at + rng.randint(1, 4):
            if os.waitpid(pid, os.WNOHANG)[0]:
                break
        else:
            time.sleep(rng.random() * 0.002)
            os.kill(pid, signal.SIGKILL)
            killed += os.WIFSIGNALED(os.waitpid(pid, 0)[1])
            with open(out / "align.jsonl", "ab") as file:  # a write that was cut short, and the bytes of a next one
                file.write(rng.choice([b"", b'{"id": "u', b'{"id": "u39", "transcript": "ab a"', b"\xc3"]))
    assert killed >= 3
    assert quietly(slow_job(notes), corpus / "all.jsonl", out, processes=processes) == 0
    assert sorted(results(out)) == sorted(results(undisturbed))
    # Work is done twice on what was under way when a run was killed, or held back, and on nothing else.
    again = collections.Counter(notes.read_text().split())
    assert again.keys() == {f"u{k}" for k in range(COUNT)}
    if not hold:
        assert sum(again.values()) - COUNT <= killed * processes * (2 + work.AHEAD)


def test_failures_are_reported_and_the_others_go_on(corpus, tmp_path, capsys):
    np.save(corpus / "nan.npy", scores_of(2, 3) * np.nan)
    np.save(corpus / "two.npy", np.stack([scores_of(2), scores_of(2)]))
    (corpus / "damaged.npy").write_bytes(b"RIFF")
    bad = {"nan": "ab", "two": "a", "damaged": "a", "missing": "a", "short": "a" * 9, "textless": None, "star": "!?"}
    lines = [{"id": "good", "scores": "scores/0.npy", "text": "ab a"}]
    for name, text in bad.items():
        file = f"{name}.npy" if name in ("nan", "two", "damaged", "missing") else "scores/0.npy"
        lines.append({"id": name, "scores": file, "text": text})
    lines.append({"id": "last [/bold]\x1b[31m", "scores": "scores/1.npy", "text": "ab a"})
    source = write_manifest(corpus / "bad.jsonl", lines)
    command = ["align", str(source), *OPTIONS, "--processes", "1", "--out", str(tmp_path / "out")]
    assert cli.main(command) == 1
    printed = capsys.readouterr().out
    assert "7 of 9 failed, the first: nan: a score is NaN or +inf, in 2 frames and 2 tokens" in printed
    found = by_id(results(tmp_path / "out"))
    assert list(found) == [line["id"] for line in lines]
    errors = {name: line["error"] for name, line in found.items() if "error" in line}
    assert errors.keys() == bad.keys()
    for name, reason in {
        "two": "must hold one utterance; has 2 samples",
        "damaged": "cannot be read as .npy",
        "missing": "no such file",
        "short": "the transcript needs 17 frames, has 4",
        "textless": "it has no text",
        "star": "no token of the vocabulary begins any part of '!?'",
    }.items():
        assert reason in errors[name]
    # They stay failures until they are asked for again, and are then done once.
    np.save(corpus / "missing.npy", scores_of(2))
    assert cli.main(command) == 1
    assert by_id(results(tmp_path / "out")) == found
    assert cli.main([*command, "--retry"]) == 1
    again = by_id(results(tmp_path / "out"))
    assert again.keys() == found.keys()
    assert again["missing"]["seconds"] == 0.5
    assert "6 of 9 failed" in capsys.readouterr().out


class DeadlyJob(align.AlignJob):
    def __call__(self, entry):
        if entry.id == "u5":
            os.kill(os.getpid(), signal.SIGKILL)
        if entry.id == "u6":
            raise AssertionError("a defect\nof two lines")
        return super().__call__(entry)


@forks
def test_an_utterance_that_ends_its_process_fails_alone(corpus, tmp_path):
    # A text that no pipe holds is among them.
    lines = [json.loads(line) for line in open(corpus / "all.jsonl")]
    lines[7]["text"] = "ab a " + " " * 300_000
    lines[8]["text"] = "ab a " + " " * 300_000
    write_manifest(corpus / "long.jsonl", lines)
    job = DeadlyJob(load_reading(None, "- ab", None, 0, 0.5, False), {})
    assert quietly(job, corpus / "long.jsonl", tmp_path / "out", processes=2) == 1
    found = by_id(results(tmp_path / "out"))
    assert len(found) == COUNT
    assert {name: line["error"] for name, line in found.items() if "error" in line} == {
        "u5": "the process that worked on it ended by SIGKILL",
        "u6": "AssertionError: a defect\\nof two lines",
    }


WRONG = {
    "not json\n": "line 1: must be a JSON object; Expecting value",
    '{"scores": "a.npy"}\n[1]\n': "line 2: must be a JSON object; got [1]",
    '{"id": "a"}': 'line 1: must have "scores", the path of a file; got None',
    '{"scores": "a.npy", "id": 3}': 'line 1: must have a text for "id"; got 3',
    '{"scores": "a.npy", "text": ["a"]}': "line 1: must have a text for \"text\"; got ['a']",
    '{"scores": "a.npy"}\n\n{"scores": "a.npy"}\n': "line 3: id must be of one utterance; 'a.npy' is at ",
    "\n": "has no utterances",
    "\xff": "must be a JSON object",
}


@pytest.mark.parametrize("text", WRONG)
def test_a_wrong_manifest_is_one_line_and_nothing_is_written(text, tmp_path, capsys):
    (tmp_path / "m.jsonl").write_bytes(text.encode("latin-1"))
    assert cli.main(["align", str(tmp_path / "m.jsonl"), *OPTIONS, "--out", str(tmp_path / "out")]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"pathsum align: {tmp_path / 'm.jsonl'}")
    assert WRONG[text] in captured.err
    assert captured.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_results_of_other_options_or_of_another_file_are_not_mixed(corpus, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["align", str(corpus / "all.jsonl"), "--processes", "1", "--out", str(out), "--tokens", "- ab"]
    assert cli.main(command) == 0
    before = results(out)
    assert cli.main([*command, "--frame-seconds", "1"]) == 2
    assert "its results were begun with frame_seconds 0.02, not 1.0; choose another folder" in capsys.readouterr().err
    (corpus / "other.jsonl").write_bytes((corpus / "all.jsonl").read_bytes())
    assert cli.main([command[0], str(corpus / "other.jsonl"), *command[2:]]) == 2
    assert "its results were begun with corpus " in capsys.readouterr().err
    (out / "align.jsonl").write_bytes(before[0] + b"something else\n" + before[1])
    assert cli.main(command) == 2
    assert "align.jsonl, line 2: must be a result; it does not begin with" in capsys.readouterr().err
    assert cli.main(["align", str(tmp_path / "no.jsonl"), "--out", str(out)]) == 2
    assert "no.jsonl: No such file" in capsys.readouterr().err


@forks
@pytest.mark.skipif(sys.platform == "win32", reason="no locks of this kind")
def test_two_runs_do_not_write_to_one_file(corpus, tmp_path, capsys):
    ready, told = os.pipe()
    pid = os.fork()
    if not pid:
        job = slow_job(tmp_path / "notes")
        job_lines = work.outcome
        work.outcome = lambda *arguments: (os.write(told, b"x"), time.sleep(60), job_lines(*arguments))[2]
        quietly(job, corpus / "all.jsonl", tmp_path / "out", processes=1)
        os._exit(0)
    try:
        os.read(ready, 1)
        with pytest.raises(UtteranceError, match="another run is writing there"):
            quietly(slow_job(tmp_path / "notes"), corpus / "all.jsonl", tmp_path / "out", processes=1)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert quietly(slow_job(tmp_path / "notes"), corpus / "all.jsonl", tmp_path / "out", processes=1) == 0


@pytest.mark.parametrize(
    "arguments, complaint",
    [
        (["c.jsonl"], "argument --out: is needed for a corpus"),
        (["c.jsonl", "--out", "o", "--formats", "ctm"], "argument --formats: is not for a corpus"),
        (["c.jsonl", "a text", "--out", "o"], "argument text: is not for a corpus"),
        (["c.npy", "a text", "--retry"], "argument --retry: is not for one file of scores"),
        (["c.npy", "a text", "--processes", "2"], "argument --processes: is not for one file of scores"),
    ],
)
def test_options_that_do_not_go_together_are_one_line(arguments, complaint, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["align", *arguments])
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert complaint in line


@pytest.mark.parametrize(
    "arguments, complaint",
    [
        (["align", "--blank", "9"], "forced_align: blank must lie in [-4, 4); got 9"),
        (["decode", "--blank", "-5"], "ctc_beam_decode: blank must lie in [-4, 4); got -5"),
        (["decode", "--hotwords", "zz=3"], "ctc_beam_decode: hotwords must have words that the labels can spell"),
        (["decode", "--lexicon", "lexicon"], "lexicon must have tokens in [0, 4) other than the blank; got 0 in 'ab'"),
        (["decode", "--beam-threshold", "-2"], "beam_threshold must be finite and at least 0; got -2.0"),
    ],
)
def test_options_that_no_utterance_can_be_done_with_are_one_line_and_nothing_is_written(
    arguments, complaint, corpus, tmp_path, capsys
):
    (tmp_path / "lexicon").write_text("ab - b\n")
    arguments = [str(tmp_path / each) if each == "lexicon" else each for each in arguments]
    command, *options = arguments
    wrong = [command, str(corpus / "all.jsonl"), *OPTIONS, *options, "--processes", "1", "--out", str(tmp_path / "out")]
    assert cli.main(wrong) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert complaint in line
    assert not (tmp_path / "out").exists()


def test_processes_are_as_many_as_cores_here_and_any_number_on_a_cluster(corpus, tmp_path, monkeypatch, capsys):
    many = str((os.cpu_count() or 1) + 1)
    command = ["align", str(corpus / "all.jsonl"), *OPTIONS, "--processes", many, "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit):
        cli.main(command)
    assert f"argument --processes: must be at most {os.cpu_count()}; got {many}" in capsys.readouterr().err
    monkeypatch.setattr("pathsum.bench.peers.installed", lambda module: module != "ray")
    assert cli.main([*command, "--engine", "ray"]) == 2
    assert "ray not installed; install the extra: pip install 'pathsum[ray]'" in capsys.readouterr().err


def test_names_that_no_encoding_has_come_back_as_they_are(corpus, tmp_path):
    (corpus / "\udcff \u2028é.npy").write_bytes((corpus / "scores" / "0.npy").read_bytes())
    job = align.AlignJob(load_reading(None, "- ab", None, 0, 0.5, False), {})
    for _ in range(2):
        assert quietly(job, corpus, tmp_path / "out", processes=1) == 1
        found = by_id(results(tmp_path / "out"))
        assert "\udcff \u2028é" in found
        assert len(found) == COUNT + 1


def test_the_manifest_is_read_as_it_is_asked_for(corpus):
    entries = manifest.entries(corpus / "all.jsonl")
    assert next(entries) == ("u0", str(corpus / "scores" / "0.npy"), "ab a")
    (corpus / "all.jsonl").unlink()
    assert sum(1 for _ in entries) == COUNT - 1
    assert manifest.check(Path(corpus)) == COUNT


def test_ray_writes_the_same_lines(corpus, tmp_path):
    pytest.importorskip("ray.data")
    lines = [json.loads(line) for line in open(corpus / "all.jsonl")]
    source = write_manifest(corpus / "bad.jsonl", [*lines, {"id": "bad", "scores": "none.npy", "text": None}])
    job = align.AlignJob(load_reading(None, "- ab", None, 0, 0.5, False), {})
    assert quietly(job, source, tmp_path / "here", processes=1) == 1
    assert quietly(job, source, tmp_path / "ray", processes=2, engine="ray") == 1
    assert sorted(results(tmp_path / "here")) == sorted(results(tmp_path / "ray"))

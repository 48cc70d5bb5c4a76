"""`pathsum align`: files and transcripts in, tables and files out."""

import errno
import json
import os
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from pathsum import cli

pytest.importorskip("rich")
pytest.importorskip("matplotlib")

from pathsum.utterances import outputs

# blank, space, a, b: "ab a" on eight frames of half a second.
FRAMES = [0, 2, 2, 3, 1, 0, 2, 0]
VOCABULARY = ["<blank>", " ", "a", "b"]


def log_probs(frames=FRAMES, num_classes=4):
    return torch.tensor(np.log(np.where(np.eye(num_classes)[frames] > 0, 0.91, 0.03)), dtype=torch.float32)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "vocabulary.txt").write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
    np.save(tmp_path / "speech.npy", log_probs().numpy())
    return tmp_path


def align(folder, *arguments, scores="speech.npy"):
    return cli.main(["align", str(folder / scores), *arguments])


OPTIONS = ("--frame-seconds", "0.5", "--tokens", "- ab")
WORDS = [("ab", 0.5, 2.0), ("a", 3.0, 3.5)]
TOKENS = [("a", 0.5, 1.5), ("b", 1.5, 2.0), (" ", 2.0, 2.5), ("a", 3.0, 3.5)]


def test_all_files_tell_the_same(folder, capsys):
    assert align(folder, "ab a", *OPTIONS, "--out", str(folder / "out")) == 0
    printed = capsys.readouterr().out
    assert re.search(r"a +│ +0\.500 │ 1\.500 │ +0\.910 │ ab ", printed)
    found = json.loads((folder / "out" / "speech.json").read_text(encoding="utf-8"))
    assert [(word["text"], word["start"], word["end"]) for word in found["words"]] == WORDS
    assert [(token["text"], token["start"], token["end"]) for token in found["tokens"]] == TOKENS
    assert found["seconds"] == 4
    assert found["log_prob"] == pytest.approx(8 * np.log(0.91))
    assert all(abs(part["confidence"] - 0.91) < 1e-4 for part in found["words"] + found["tokens"])
    assert (folder / "out" / "speech.ctm").read_text() == (
        "speech 1 0.500 1.500 ab 0.910\nspeech 1 3.000 0.500 a 0.910\n"
    )
    assert (folder / "out" / "speech.png").read_bytes().startswith(b"\x89PNG")
    tiers = read_textgrid(folder / "out" / "speech.TextGrid")
    assert tiers["words"] == [("", 0, 0.5), ("ab", 0.5, 2), ("", 2, 3), ("a", 3, 3.5), ("", 3.5, 4)]
    assert [part for part in tiers["tokens"] if part[0]] == TOKENS


def read_textgrid(path):
    """Tiers of intervals (text, start, end); every tier must cover the whole time without a gap."""
    text = path.read_text(encoding="utf-8")
    number = r"(-?[\d.]+)"
    tiers = {}
    for part in re.split(r"    item \[\d+\]:\n", text)[1:]:
        name = re.search(r'name = "(.*)"', part)[1]
        count = int(re.search(r"intervals: size = (\d+)", part)[1])
        found = re.findall(rf'xmin = {number}\s+xmax = {number}\s+text = "((?:[^"]|"")*)"', part)
        assert len(found) == count
        assert [float(end) for _, end, _ in found[:-1]] == [float(start) for start, _, _ in found[1:]]
        tiers[name] = [(label.replace('""', '"'), float(start), float(end)) for start, end, label in found]
        assert (tiers[name][0][1], tiers[name][-1][2]) == (0, float(re.search(rf"xmax = {number}", text)[1]))
    return tiers


def test_scores_of_every_kind_of_file(folder, capsys):
    scores = log_probs()
    np.savez(folder / "one.npz", anything=scores.numpy())
    np.savez(folder / "two.npz", log_probs=np.stack([scores.numpy()] * 2), input_lengths=[8, 7], other=[1])
    torch.save(scores[None].half(), folder / "batch.pt")
    torch.save({"logits": scores[None] + 3, "lengths": torch.tensor([8])}, folder / "logits.pt")
    tables = []
    for name, count, options in (
        ("speech.npy", 1, ()),
        ("one.npz", 1, ()),
        ("two.npz", 2, ()),
        ("batch.pt", 1, ()),
        ("logits.pt", 1, ("--logits",)),
    ):
        assert align(folder, *["ab a"] * count, *OPTIONS, *options, scores=name) == 0
        tables += re.findall(r"a +│ +0\.500 │ 1\.500 │ +0\.91", capsys.readouterr().out)
    assert len(tables) == 6


def test_transcripts_as_numbers_from_files_and_with_another_space(folder, capsys):
    assert align(folder, "2 3,1 2", "--frame-seconds", "0.5", "--out", str(folder), "--formats", "json") == 0
    found = json.loads((folder / "speech.json").read_text())
    assert ([token["text"] for token in found["tokens"]], found["words"]) == (["2", "3", "1", "2"], [])
    assert not (folder / "speech.ctm").exists()

    (folder / "texts.txt").write_text("ab a\n", encoding="utf-8")
    vocabulary = ("--vocabulary", str(folder / "vocabulary.txt"))
    assert align(folder, "--text-file", str(folder / "texts.txt"), *vocabulary) == 0
    (folder / "numbered.txt").write_text("<blank> 0\n▁ 1\nab 2\nb 3\n", encoding="utf-8")
    # The longest token wins: "ab" is one.
    numbered = ("--vocabulary", str(folder / "numbered.txt"), "--space", "▁")
    assert align(folder, "ab b", *numbered, "--out", str(folder)) == 0
    assert [token["text"] for token in json.loads((folder / "speech.json").read_text())["tokens"]] == ["ab", "▁", "b"]


def test_an_empty_transcript_and_a_long_one_can_be_drawn(folder):
    assert align(folder, "", *OPTIONS, "--out", str(folder)) == 0
    assert json.loads((folder / "speech.json").read_text())["tokens"] == []
    np.save(folder / "long.npy", log_probs([2 + t % 2 for t in range(200)]).numpy())
    assert align(folder, "ab" * 100, *OPTIONS, "--out", str(folder), scores="long.npy") == 0
    assert (folder / "long.png").stat().st_size > 10_000


def test_a_quote_in_a_token_survives_the_textgrid(folder):
    assert align(folder, 'a"', "--tokens", '- a"', "--out", str(folder)) == 0
    assert ('"', 0.06, 0.08) in read_textgrid(folder / "speech.TextGrid")["tokens"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("17 $!", *OPTIONS), "no token of the vocabulary begins any part of '17 $!'"),
        (("aaaaa", *OPTIONS), "needs 9 frames, has 8: a frame for each of 5 labels, and a blank between equal"),
        (("ab", "a", *OPTIONS), "has 1 samples; got 2 transcripts"),
        (("ab", "--tokens=-ab"), "must have a token for each of the 4 classes; has 3"),
        (("ab",), "without a vocabulary the transcript must be class numbers"),
        (("7",), "targets must lie in [0, C) with C = 4; got 7 at sample 0"),
        (("2 2 2 2 2",), "the transcript needs 9 frames, has 8: a frame for each of 5 labels, and"),
        (("2", "--blank", "9"), "blank must lie in [-4, 4); got 9"),
        (("ab", *OPTIONS, "--space", "_"), "the token for a space, '_', is not in the vocabulary"),
        (("--text-file", "missing.txt", *OPTIONS), "missing.txt"),
        (("ab", "--vocabulary", "missing.txt"), "missing.txt"),
    ],
)
def test_wrong_calls_are_said_in_one_line(folder, capsys, arguments, message):
    assert align(folder, *arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("pathsum align: ")
    assert message in error
    assert error.count("\n") == 1


def test_wrong_files_are_said_in_one_line(folder, capsys):
    np.save(folder / "flat.npy", np.zeros(4, np.float32))
    np.save(folder / "integers.npy", np.zeros((4, 4), np.int64))
    np.savez(folder / "many.npz", a=np.zeros(3), b=np.zeros(3))
    (folder / "scores.txt").write_text("1 2")
    for name, message in (
        ("flat.npy", "must hold floats"),
        ("integers.npy", "must hold floats"),
        ("many.npz", "must hold one array"),
        ("scores.txt", "must be .npy, .npz or .pt"),
        ("missing.npy", "no such file"),
    ):
        assert align(folder, "1", scores=name) == 2
        assert message in capsys.readouterr().err
    scores = log_probs()
    scores[3] = torch.nan
    np.save(folder / "nan.npy", scores.numpy())
    assert align(folder, "ab a", *OPTIONS, scores="nan.npy") == 2
    assert "a score is NaN" in capsys.readouterr().err


GOOD = log_probs().numpy()


def archive(**arrays):
    return lambda path: np.savez(path, **arrays)


def header(shape, descr="<f4"):
    """A .npy file whose header promises what does not follow."""

    def write(path):
        text = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}}}\n".encode()
        path.write_bytes(b"\x93NUMPY\x02\x00" + len(text).to_bytes(4, "little") + text + bytes(16))

    return write


def truncated(write, size):
    def cut(path):
        write(path)
        path.write_bytes(path.read_bytes()[:size])

    return cut


def lengths(value):
    return archive(log_probs=np.stack([GOOD, GOOD]), lengths=value)


DAMAGED = {
    "empty.npy": lambda path: path.write_bytes(b""),
    "empty.npz": lambda path: path.write_bytes(b""),
    "empty.pt": lambda path: path.write_bytes(b""),
    "foreign.npy": lambda path: path.write_bytes(b"RIFF and so on" * 9),
    "foreign.npz": lambda path: path.write_bytes(b"RIFF and so on" * 9),
    "foreign.pt": lambda path: path.write_bytes(b"RIFF and so on" * 9),
    "pickle.pt": lambda path: path.write_bytes(pickle.dumps(print)),
    "truncated.npy": truncated(lambda path: np.save(path, GOOD), 150),
    "truncated.npz": truncated(archive(a=GOOD), 200),
    "truncated.pt": truncated(lambda path: torch.save(log_probs(), path), 200),
    "short-header.npy": truncated(lambda path: np.save(path, GOOD), 20),
    "long-header.npy": lambda path: path.write_bytes(b"\x93NUMPY\x02\x00\xff\xff\xff\xff{"),
    "huge.npy": header((10**9, 10**6)),
    "beyond.npy": header((2**62, 2**62)),
    "negative.npy": header((-1, 4)),
    "dtype.npy": header((4, 4), "nonsense"),
    "archive.npy": lambda path: (np.savez(path.with_suffix(".npz"), GOOD), path.with_suffix(".npz").rename(path)),
    "array.npz": lambda path: (np.save(path.with_suffix(".npy"), GOOD), path.with_suffix(".npy").rename(path)),
    "longdouble.npy": lambda path: np.save(path, GOOD.astype(np.longdouble)),
    "complex.npy": lambda path: np.save(path, GOOD.astype(complex)),
    "text.npy": lambda path: np.save(path, GOOD.astype(str)),
    "void.npy": lambda path: np.save(path, GOOD.view("V4")),
    "fields.npy": lambda path: np.save(path, np.zeros((4, 4), [("a", "f4"), ("b", "f4")])),
    "objects.npy": lambda path: np.save(path, GOOD.astype(object), allow_pickle=True),
    "dates.npy": lambda path: np.save(path, GOOD.astype("datetime64[s]")),
    "scalar.npy": lambda path: np.save(path, np.float32(1)),
    "classless.npy": lambda path: np.save(path, np.zeros((4, 0), np.float32)),
    "none.npz": archive(),
    "objects.npz": archive(log_probs=GOOD.astype(object)),
    "list.pt": lambda path: torch.save([1.0, 2.0], path),
    "dictionary.pt": lambda path: torch.save({1: log_probs(), 2: log_probs()}, path),
    "sparse.pt": lambda path: torch.save(log_probs().to_sparse(), path),
    "meta.pt": lambda path: torch.save(log_probs().to("meta"), path),
    "float8.pt": lambda path: torch.save(log_probs().to(torch.float8_e4m3fn), path),
    "part-of-a-frame.npz": lengths([8, 7.9]),
    "word-lengths.npz": lengths(["8", "7"]),
    "nan-lengths.npz": lengths([8, np.nan]),
    "negative-lengths.npz": lengths([8, -1]),
    "long-lengths.npz": lengths([8, 9]),
    "wrapping-lengths.npz": lengths(np.array([8, 2**64 - 1], np.uint64)),
    "one-length.npz": lengths([8]),
    "truth-lengths.npz": lengths([True, True]),
    "nothing.pt": lambda path: torch.save({"lengths": torch.tensor([8])}, path),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_file_that_holds_no_scores_is_one_line(name, tmp_path, capsys):
    DAMAGED[name](tmp_path / name)
    assert align(tmp_path, "2", "2", "--out", str(tmp_path / "out"), scores=name) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"pathsum align: {tmp_path / name}: ")
    assert captured.err.count("\n") == 1
    assert len(captured.err) < 600
    assert not (tmp_path / "out").exists()


def test_whole_lengths_and_scores_of_another_byte_order_are_taken(tmp_path):
    np.savez(tmp_path / "good.npz", log_probs=np.stack([GOOD, GOOD]).astype(">f8"), lengths=[8.0, 7.0])
    assert align(tmp_path, "2 3", "2 3", "--out", str(tmp_path), scores="good.npz") == 0
    assert json.loads((tmp_path / "good-1.json").read_text())["seconds"] == pytest.approx(7 * 0.02)


@pytest.mark.parametrize("text", ["2" * 5000, "2" * 30, "-1", "1_0", "٢", "2.5", "nan", "2 [/bold]", "\x1b[31m"])
def test_a_transcript_that_is_no_class_numbers_is_one_line(text, folder, capsys):
    assert align(folder, "--", text) == 2
    error = capsys.readouterr().err
    assert error.startswith("pathsum align: ")
    assert error.count("\n") == 1
    assert "\x1b" not in error
    assert len(error) < 600


# What rich, matplotlib, CTM and terminals would take for something of their own.
ODD = ["[/bold]", "[red]x", ":smile:", "$\\frac$", "\\", "\x1b[31m", "{0}", '"quoted"', "a\u2028b", "\udcff"]


def without_picture(text):
    """Options: most of the time is the picture's, in which dollars and backslashes mean something, and nothing else."""
    return [] if set(text) & set("$\\") else ["--formats", "textgrid", "ctm", "json"]


@pytest.mark.parametrize("word", ODD)
def test_words_and_tokens_are_never_markup(word, tmp_path, capsys):
    np.save(tmp_path / "speech.npy", GOOD)
    vocabulary = tmp_path / "vocabulary.txt"
    vocabulary.write_bytes("\n".join(["-", "|", word, "b"]).encode("utf-8", "surrogateescape"))
    if "\udcff" in word:
        assert align(tmp_path, "b", "--vocabulary", str(vocabulary)) == 2
        assert f"{vocabulary}: must be text in UTF-8" in capsys.readouterr().err
        return
    # A separator of words within a token is a separator still.
    text = "b" if len(word.split()) > 1 else f"{word}b {word}"
    options = ["--vocabulary", str(vocabulary), "--out", str(tmp_path), *without_picture(word)]
    assert align(tmp_path, text, *options) == 0
    printed = capsys.readouterr().out
    if text != "b":
        assert "\x1b" not in printed
        assert word.replace("\x1b", "\\x1b") in printed
        document = json.loads((tmp_path / "speech.json").read_text(encoding="utf-8"))
        assert [part["text"] for part in document["words"]] == [f"{word}b", word]
        assert all(len(line.split()) == 6 for line in (tmp_path / "speech.ctm").read_text("utf-8").splitlines())


@pytest.mark.parametrize("name", ["[bold]", "[red]", "two words", "$x$", ":smile:", "\x1b[31m", "%s{0}", "new\nline"])
def test_paths_are_never_markup(name, tmp_path, capsys):
    np.save(tmp_path / f"{name}.npy", GOOD)
    out = tmp_path / f"{name} out"
    options = without_picture(name)
    assert align(tmp_path, "2 3 1 2", "--out", str(out), *options, scores=f"{name}.npy") == 0
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert name.replace("\x1b", "\\x1b").replace("\n", "\\n") in printed
    assert sorted(file.name for file in out.iterdir()) == sorted(
        f"{name}.{suffix}" for suffix in ("TextGrid", "ctm", "json", *([] if options else ["png"]))
    )
    assert all(len(line.split()) == 6 for line in (out / f"{name}.ctm").read_text("utf-8").splitlines())
    assert align(tmp_path, "9", scores=f"{name}.npy") == 2
    assert align(tmp_path, "9", scores=f"no {name}.npy") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 2
    assert "\x1b" not in error


def test_nothing_is_written_where_a_later_sample_does_not_fit(tmp_path, capsys):
    np.save(tmp_path / "two.npy", np.stack([GOOD, GOOD]))
    (tmp_path / "two-0.json").write_text("before")
    assert align(tmp_path, "2", "2 2 2 2 2 2", "--out", str(tmp_path), scores="two.npy") == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("pathsum align: two-1: ")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["two-0.json", "two.npy"]
    assert (tmp_path / "two-0.json").read_text() == "before"


def test_nothing_is_written_where_a_file_cannot_be(folder, monkeypatch, capsys):
    def fail(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "speech.ctm")

    before = sorted(folder.iterdir())
    monkeypatch.setattr(outputs, "write_ctm", fail)
    assert align(folder, "2 3", "--out", str(folder)) == 2
    assert capsys.readouterr().err == f"pathsum align: speech.ctm: {os.strerror(errno.ENOSPC)}\n"
    assert sorted(folder.iterdir()) == before


def test_a_folder_where_a_file_should_go_is_one_line(folder, capsys):
    (folder / "speech.json").mkdir()
    before = sorted(folder.iterdir())
    assert align(folder, "2 3", "--out", str(folder)) == 2
    assert "speech.json is a folder" in capsys.readouterr().err
    assert sorted(folder.iterdir()) == before
    assert align(folder, "2 3", "--out", str(folder / "speech.npy")) == 2
    assert align(folder, "2 3", "--out", str(folder / "speech.npy" / "below")) == 2
    assert capsys.readouterr().err.count("\n") == 2


def test_the_example_of_the_documentation(tmp_path):
    example = Path(__file__).parent.parent / "examples" / "alignment"
    if not example.exists():
        pytest.skip("the examples are not part of the installed package")
    arguments = ["--vocabulary", str(example / "tokens.txt"), "--frame-seconds", "0.04", "--out", str(tmp_path)]
    assert cli.main(["align", str(example / "number_words.npy"), "thirtieth third sixth", *arguments]) == 0
    words = json.loads((tmp_path / "number_words.json").read_text())["words"]
    assert [word["text"] for word in words] == ["thirtieth", "third", "sixth"]
    # Where the recordings were put together to this sentence.
    for word, (start, end) in zip(words, [(0.207, 0.883), (0.977, 1.454), (1.672, 2.403)], strict=True):
        assert abs(word["start"] - start) < 0.25
        assert abs(word["end"] - end) < 0.25


def test_a_word_that_cannot_be_spelled_has_times_as_well(folder, capsys):
    # Between "ab" on frames 1 to 3 and "a" on 6 the star has what is left, all but the two spaces.
    np.save(folder / "star.npy", log_probs([0, 2, 2, 3, 1, 3, 0, 3, 1, 2]).numpy())
    arguments = ("ab 17 a", *OPTIONS, "--out", str(folder / "out"))
    assert align(folder, *arguments, scores="star.npy") == 0
    assert "a star (*) stands for what the vocabulary cannot spell in: 17" in capsys.readouterr().out
    found = json.loads((folder / "out" / "star.json").read_text(encoding="utf-8"))
    words = [(word["text"], word["start"], word["end"]) for word in found["words"]]
    assert words == [("ab", 0.5, 2.0), ("17", 2.5, 4.0), ("a", 4.5, 5.0)]
    assert [token["text"] for token in found["tokens"]] == ["a", "b", " ", "*", " ", "a"]
    # Part of a word: the letters that are known keep their frames, and a run of others is one star.
    assert align(folder, "ab?!b a", *OPTIONS, "--out", str(folder / "out"), scores="star.npy") == 0
    found = json.loads((folder / "out" / "star.json").read_text(encoding="utf-8"))
    assert [token["text"] for token in found["tokens"]] == ["a", "b", "*", "b", " ", "a"]
    assert (folder / "out" / "star.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("logits", [False, True])
def test_a_long_recording_read_in_blocks_is_aligned_as_the_whole(logits, tmp_path, monkeypatch):
    from pathsum.torch import forced_align
    from pathsum.utterances import align as command
    from pathsum.utterances import inputs

    rng = np.random.default_rng(0)
    scores = rng.standard_normal((500, 60), dtype=np.float32)
    np.save(tmp_path / "long.npy", scores)
    labels = rng.integers(1, 60, 80).tolist()
    whole = torch.from_numpy(scores).log_softmax(1) if logits else torch.from_numpy(scores)
    expected = forced_align(whole, labels).scores.double().sum()
    # Seven frames at a time, of a file that is mapped; a star among the labels needs no further copy.
    monkeypatch.setattr(command, "BLOCK", 7 * 60)
    monkeypatch.setattr(inputs, "MAPPED", 0)
    options = ["--formats", "json", *(["--logits"] if logits else [])]
    text = " ".join(map(str, labels))
    assert cli.main(["align", str(tmp_path / "long.npy"), text, *options, "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "long.json").read_text())
    assert found["log_prob"] == pytest.approx(float(expected), rel=1e-6)
    assert [int(token["text"]) for token in found["tokens"]] == labels
    assert np.array_equal(np.load(tmp_path / "long.npy"), scores)


def test_memory_of_a_long_recording_is_that_of_the_classes_that_are_read(tmp_path, monkeypatch):
    """A score of each frame and class would be 64 MB; in float32 the classes read have 20000 frames times 4."""
    import tracemalloc

    from pathsum.utterances import align as command
    from pathsum.utterances import inputs

    monkeypatch.setattr(inputs, "MAPPED", 0)
    monkeypatch.setattr(command, "BLOCK", 1 << 16)
    np.save(tmp_path / "wide.npy", np.zeros((20000, 800), np.float32))
    scores, lengths = inputs.load_scores(tmp_path / "wide.npy")
    taken = []
    real = torch.Tensor.new_zeros
    monkeypatch.setattr(torch.Tensor, "new_zeros", lambda *a: taken.append(a[1:]) or real(*a))
    tracemalloc.start()  # of NumPy's arrays; torch's are those above and a block's
    command.align(["wide"], scores, lengths, ["1 2 3"], inputs.Reading(logits=True))
    assert tracemalloc.get_traced_memory()[1] < 4e6
    tracemalloc.stop()
    assert taken == [(1, 20000, 4)]

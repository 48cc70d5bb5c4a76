"""The ``pathsum`` command. What it runs is imported when it runs: ``info`` needs the base install and no more."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from typing import IO, Any, NoReturn

from pathsum import __version__
from pathsum.errors import CommandError, InvalidTypeError, InvalidValueError
from pathsum.printable import printable

_COMMANDS = ("info", "warmup", "align", "decode", "bench", "demo")

# What each extra installs, so that what is missing is said in one line before anything starts.
_EXTRAS = {
    "warmup": ("torch",),
    "align": ("torch", "rich", "matplotlib"),
    "decode": ("torch", "rich"),
    "bench": ("torch", "rich", "matplotlib"),
    "demo": ("torch", "rich", "matplotlib", "soundfile", "jiwer"),
    "ray": ("ray", "pyarrow"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status: 0, 1 for a red gate, 2 for whatever the user has to put right.

    The latter is said in one line on standard error. A traceback is a defect of pathsum's.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    command = next((argument for argument in arguments if argument in _COMMANDS), None)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A character that the terminal's encoding lacks is no reason to fail.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        try:
            options = _parser().parse_args(arguments, argparse.Namespace(arguments=arguments))
            _check_installed(options.command)
            return options.run(options)
        finally:
            _flush()
    except KeyboardInterrupt:
        _complain(command, "interrupted")
        return 128 + signal.SIGINT
    except BrokenPipeError:
        _give_up_output()
        _complain(command, "standard output was closed before all was written")
    except OSError as error:
        reason = error.strerror or str(error)
        _complain(command, f"{error.filename}: {reason}" if error.filename else reason)
    except (CommandError, InvalidValueError, InvalidTypeError) as error:
        _complain(command, str(error))
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and "can't allocate memory" not in str(error):
            raise
        _complain(command, "this needs more memory than there is")
    return 2


def _complain(command: str | None, message: str) -> None:
    print(f"pathsum {command}: {printable(message)}" if command else f"pathsum: {printable(message)}", file=sys.stderr)


def _flush() -> None:
    if sys.stdout is None:  # started without one
        return
    try:
        sys.stdout.flush()
    except OSError:
        _give_up_output()
        raise


def _give_up_output() -> None:
    """Python writes what is left when it ends, and would fail again."""
    with contextlib.suppress(OSError, ValueError):  # ValueError: standard output is no file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _check_installed(extra: str) -> None:
    from pathsum.bench.peers import installed

    missing = [module for module in _EXTRAS.get(extra, ()) if not installed(module)]
    if missing:
        raise CommandError(
            f"{', '.join(missing)} not installed; install the extra: pip install 'pathsum[{extra}]'",
        )


class _Parser(argparse.ArgumentParser):
    """A wrong call is one line, as every other mistake is."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {printable(message)} ({self.prog} --help tells more)\n")

    def _print_message(self, message: str, file: IO[str] | None = None) -> None:
        # argparse's own drops the errors of output that cannot be written.
        print(message, end="", file=file)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="pathsum", description="Sequence-transduction losses.")
    parser.add_argument("--version", action="version", version=f"pathsum {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")

    info = commands.add_parser(
        "info", help="print versions, devices, implementations and the state of the kernel cache"
    )
    info.set_defaults(run=_info)

    warmup = commands.add_parser("warmup", help="compile kernels and cache them, so that first calls need not")
    warmup.add_argument("functions", nargs="*", metavar="function", help="of pathsum.torch (all it knows)")
    warmup.add_argument(
        "--dtypes", nargs="+", choices=["float16", "bfloat16", "float32", "float64"], default=["float32"],
        metavar="NAME", help="of the scores (float32)",
    )  # fmt: skip
    warmup.add_argument("--second", action="store_true", help="second derivatives too")
    warmup.set_defaults(run=_warmup)

    align = commands.add_parser("align", help="find the time of every token of a transcript in CTC log-probabilities")
    align.add_argument("scores", type=_path, help=_SCORES)
    align.add_argument(
        "text", nargs="*", help="transcript of each sample: words, or class numbers without a vocabulary"
    )
    align.add_argument("--text-file", type=_path, metavar="FILE", help="transcripts, one a line, in place of text")
    _add_reading(align)
    align.add_argument("--out", type=_path, metavar="DIR", help="write TextGrid, CTM, JSON and a picture there")
    align.add_argument(
        "--formats", nargs="+", choices=["textgrid", "ctm", "json", "png"], metavar="NAME", help="only these of them"
    )
    _add_corpus(align)
    align.set_defaults(run=_align, parser=align)

    decode = commands.add_parser("decode", help="find the most probable texts of CTC log-probabilities")
    decode.add_argument("scores", type=_path, help=_SCORES)
    _add_reading(decode)
    decode.add_argument("--beam-size", type=_positive(int), default=50, metavar="N", help="width of the search (50)")
    decode.add_argument("--n-best", type=_positive(int), default=1, metavar="N", help="texts in the list (1)")
    decode.add_argument("--lm", type=_path, metavar="FILE", help="language model of words: ARPA, or packed by gzip")
    decode.add_argument("--lm-weight", type=float, default=0.5, metavar="W", help="what its ln P counts (0.5)")
    decode.add_argument("--word-score", type=float, default=0.0, metavar="W", help="what each word counts (0)")
    decode.add_argument(
        "--lexicon", type=_path, metavar="FILE", help="the words that there are: one a line, and its tokens behind it"
    )
    decode.add_argument("--hotwords", nargs="+", metavar="WORDS=W", help="words and what each occurrence counts")
    decode.add_argument(
        "--token-min", type=float, default=float("-inf"), metavar="X", help="no class below it goes on (-inf)"
    )
    decode.add_argument(
        "--beam-threshold", type=float, default=float("inf"), metavar="X", help="how far behind the best one goes (inf)"
    )
    decode.add_argument("--out", type=_path, metavar="DIR", help="write TextGrid, CTM and JSON there")
    decode.add_argument(
        "--formats", nargs="+", choices=["textgrid", "ctm", "json"], metavar="NAME", help="only these of them"
    )
    _add_corpus(decode)
    decode.set_defaults(run=_decode, parser=decode)

    bench = commands.add_parser("bench", help="measure the losses beside their peers and a copy of the input")
    # Without choices: argparse would say that no group at all is not one of them.
    bench.add_argument(
        "groups",
        nargs="*",
        metavar="group",
        help="rnnt-librispeech on request; by default ctc simple_ctc rnnt mwer graphs decode small half accuracy "
        "memory first_call",
    )
    bench.add_argument("--quick", action="store_true", help="tiny shapes and few repeats: to see that everything runs")
    bench.add_argument("--repeats", type=_positive(int), metavar="N", help="turns of each implementation (15)")
    bench.add_argument("--threads", type=_threads, metavar="N", help="CPU threads (torch's setting)")
    bench.add_argument("--peers", nargs="+", metavar="NAME", help="measure only these peers (all that are installed)")
    bench.add_argument(
        "--peer-python",
        action="append",
        default=[],
        type=_interpreter,
        metavar="PATH",
        help="another interpreter: its peers run in a process of their own, taking turns with ours; repeatable",
    )
    bench.add_argument(
        "--batches",
        type=int,
        choices=range(1, 21),
        default=20,
        metavar="N",
        help="of rnnt-librispeech, the first N batches (20)",
    )
    bench.add_argument(
        "--utterances",
        type=int,
        choices=range(1, 31),
        default=30,
        metavar="N",
        help="of rnnt-librispeech, the first N utterances of each batch (30)",
    )
    bench.add_argument(
        "--out", type=_path, default="bench-out", metavar="DIR", help="where rows and plots go (bench-out)"
    )
    bench.add_argument(
        "--show",
        type=_path,
        metavar="DIR",
        help="measure nothing: print the last rows recorded in DIR as Markdown, redraw its plots",
    )
    bench.set_defaults(run=_bench, parser=bench)

    demo = commands.add_parser("demo", help="train on recorded speech with CTC, RNN-T and ASG, report error rates")
    names = ["ctc", "rnnt", "asg"]
    demo.add_argument("--losses", nargs="+", choices=[*names, "lfmmi"], default=names, help="(ctc rnnt asg)")
    demo.add_argument(
        "--steps", type=_positive(int), metavar="N", help="training steps for each loss (its own default)"
    )
    demo.add_argument(
        "--seconds",
        type=_positive(float),
        default=180,
        metavar="S",
        help="time budget for each loss, from the end of its first step (180)",
    )
    demo.add_argument(
        "--mwer-steps", type=_count, default=40, metavar="N", help="steps on expected word errors, behind CTC's (40)"
    )
    demo.add_argument("--seed", type=_seed, default=0, help="of weights and training sequences (0)")
    demo.add_argument("--threads", type=_threads, metavar="N", help="CPU threads of each process (1)")
    demo.add_argument(
        "--processes", type=_threads, metavar="N", help="train by so many, each on its part of a batch (1)"
    )
    demo.add_argument(
        "--wav", type=_path, metavar="FILE", help="recording of your own, of any rate, to be written down"
    )
    demo.add_argument(
        "--out", type=_path, default="demo-out", metavar="DIR", help="where metrics and picture go (demo-out)"
    )
    demo.set_defaults(run=_demo)
    return parser


_SCORES = (
    ".npy, .npz or .pt file of log-probabilities (T, C) or (N, T, C); or a corpus: a .jsonl file whose lines have "
    "scores, text and id, or a folder of such files"
)


def _add_reading(parser: argparse.ArgumentParser) -> None:
    """How scores and texts are read."""
    vocabulary = parser.add_mutually_exclusive_group()
    vocabulary.add_argument("--vocabulary", type=_path, metavar="FILE", help="the classes' tokens, one a line")
    vocabulary.add_argument("--tokens", metavar="TEXT", help="the classes' tokens, a character for each class")
    parser.add_argument("--space", metavar="TOKEN", help="token between words (' ', |, ▁, <space> or <sp>)")
    parser.add_argument("--blank", type=int, default=0, metavar="N", help="class of the blank (0)")
    parser.add_argument(
        "--frame-seconds", type=_positive(float, 1e6), default=0.02, metavar="S", help="how long a frame lasts (0.02)"
    )
    parser.add_argument("--logits", action="store_true", help="the scores are logits: take their log-softmax")


def _add_corpus(parser: argparse.ArgumentParser) -> None:
    corpus = parser.add_argument_group("of a corpus", "results go to --out, a line an utterance; a new run goes on")
    corpus.add_argument("--processes", type=_positive(int), metavar="N", help="how many work at it (all cores)")
    corpus.add_argument("--engine", choices=["local", "ray"], help="where: on this machine (local) or a Ray cluster")
    corpus.add_argument("--retry", action="store_true", help="do again what has failed before")


def _positive(kind: type[int] | type[float], most: float = 1e9) -> Callable[[str], float]:
    def convert(text: str) -> float:
        value = kind(text)
        if not value > 0:
            raise argparse.ArgumentTypeError(f"must be positive; got {text}")
        if value > most:
            raise argparse.ArgumentTypeError(f"must be at most {most:g}; got {text}")
        return value

    convert.__name__ = kind.__name__  # argparse names it where the text is no number
    return convert


def _count(text: str) -> int:
    return 0 if text == "0" else int(_positive(int)(text))


_count.__name__ = "int"


def _threads(text: str) -> int:
    # More than the cores only take turns, and what is beyond the system's limit ends the process.
    return int(_positive(int, os.cpu_count() or 1)(text))


_threads.__name__ = "int"


def _seed(text: str) -> int:
    value = int(text)
    if not 0 <= value < 2**63:
        raise argparse.ArgumentTypeError(f"must lie in [0, 2**63); got {text}")
    return value


_seed.__name__ = "int"


def _path(text: str) -> str:
    if not text or "\0" in text:
        raise argparse.ArgumentTypeError("must be a path; got " + (repr(text) if text else "an empty text"))
    return text


def _interpreter(text: str) -> str:
    found = shutil.which(text)
    if found is None:
        raise argparse.ArgumentTypeError(f"must be an interpreter that can be run; got {text}")
    return os.path.abspath(found)


def _info(options: argparse.Namespace) -> int:
    from pathsum import info

    print(info.report())
    return 0


def _warmup(options: argparse.Namespace) -> int:
    from pathsum.warmup import warm_up

    for name, dtype, count, seconds in warm_up(options.functions, options.dtypes, options.second):
        print(f"{name} of {dtype}: {count} kernels compiled in {seconds:.1f} s", flush=True)
    return 0


# Where results are the same whatever these are.
_APART = (
    "arguments",
    "command",
    "run",
    "parser",
    "scores",
    "text",
    "text_file",
    "out",
    "formats",
    "processes",
    "engine",
    "retry",
)


def _checked_corpus(options: argparse.Namespace) -> bool:
    """Whether the scores are a corpus; options that do not go with that are a wrong call."""
    from pathsum.utterances.corpus.manifest import is_corpus

    corpus = is_corpus(options.scores)
    if corpus and options.out is None:
        options.parser.error("argument --out: is needed for a corpus")
    if options.processes is not None and options.engine != "ray":  # whose cluster has cores of its own
        try:
            _threads(str(options.processes))
        except argparse.ArgumentTypeError as error:
            options.parser.error(f"argument --processes: {error}")
    for name in ("text", "text_file", "formats") if corpus else ("processes", "engine", "retry"):
        if getattr(options, name, None):
            name = name if name == "text" else "--" + name.replace("_", "-")
            options.parser.error(f"argument {name}: is not for {'a corpus' if corpus else 'one file of scores'}")
    if options.formats and options.out is None:
        options.parser.error("argument --formats: needs --out")
    return corpus


def _run_corpus(job: Any, options: argparse.Namespace) -> int:
    from pathsum.utterances.corpus.run import run

    engine = options.engine or "local"
    if engine == "ray":
        _check_installed("ray")
    return run(job, options.scores, options.out, processes=options.processes, engine=engine, retry=options.retry)


def _reading(options: argparse.Namespace) -> Any:
    from pathsum.utterances.inputs import load_reading

    return load_reading(
        options.vocabulary, options.tokens, options.space, options.blank, options.frame_seconds, options.logits
    )


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    return {name: value for name, value in vars(options).items() if name not in _APART}


def _align(options: argparse.Namespace) -> int:
    from pathsum.utterances import align

    corpus, reading = _checked_corpus(options), _reading(options)
    if corpus:
        return _run_corpus(align.AlignJob(reading, _settings(options)), options)
    align.run(
        options.scores,
        options.text,
        reading,
        text_file=options.text_file,
        out=options.out,
        formats=options.formats or align.FORMATS,
    )
    return 0


def _decode(options: argparse.Namespace) -> int:
    from pathsum.utterances import decode

    corpus, reading = _checked_corpus(options), _reading(options)
    search = decode.load_search(
        reading,
        lm=options.lm,
        lexicon=options.lexicon,
        hotwords=options.hotwords or (),
        beam_size=options.beam_size,
        n_best=options.n_best,
        lm_weight=options.lm_weight,
        word_score=options.word_score,
        token_min=options.token_min,
        beam_threshold=options.beam_threshold,
    )
    if corpus:
        return _run_corpus(decode.DecodeJob(reading, search, _settings(options)), options)
    decode.run(options.scores, reading, search, out=options.out, formats=options.formats or decode.FORMATS)
    return 0


def _bench(options: argparse.Namespace) -> int:
    from pathsum.bench.cases import GROUPS
    from pathsum.bench.peers import PEERS
    from pathsum.bench.run import run, show

    for name, given, known in (("group", options.groups, GROUPS), ("--peers", options.peers or (), PEERS)):
        unknown = [each for each in given if each not in known]
        if unknown:
            options.parser.error(f"argument {name}: must be some of {', '.join(known)}; got {', '.join(unknown)}")
    if options.show is not None:
        return show(options.show)
    return run(
        options.groups,
        quick=options.quick,
        repeats=options.repeats,
        threads=options.threads,
        only=options.peers,
        peer_pythons=options.peer_python,
        batches=options.batches,
        utterances=options.utterances,
        out=options.out,
    )


def _demo(options: argparse.Namespace) -> int:
    from pathsum import demo
    from pathsum.demo.processes import launch, together

    if (options.processes or 1) > 1:
        at = options.arguments.index("demo") + 1
        arguments = [*options.arguments[at:], "--processes", "1"]  # the last of an option counts
        return launch(options.processes, arguments, options.out, options.wav)
    with together():
        demo.run(
            losses=options.losses,
            out=options.out,
            steps=options.steps,
            seconds=options.seconds,
            seed=options.seed,
            num_threads=options.threads,
            mwer_steps=options.mwer_steps,
            wav=options.wav,
        )
    return 0

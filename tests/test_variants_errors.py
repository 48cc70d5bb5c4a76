"""One test a message of the variants: what it says, and of which class it is."""

import pytest
import torch

import pathsum
from pathsum.torch import (
    ar_rnnt_loss,
    multi_blank_rnnt_loss,
    rnnt_loss,
    rnnt_packed_loss,
    tdt_loss,
    wildcard_rnnt_loss,
)

VALUE, TYPE = pathsum.InvalidValueError, pathsum.InvalidTypeError
INTEGERS = {"targets": [[2, 3], [4, 2]], "logit_lengths": [4, 3], "target_lengths": [2, 1], "blank": 0}
ROWS = 4 * 3 + 3 * 2

FUNCTIONS = {
    "rnnt_loss": (rnnt_loss, {"logits": torch.zeros(2, 4, 3, 6)}),
    "rnnt_packed_loss": (rnnt_packed_loss, {"logits": torch.zeros(ROWS, 6)}),
    "tdt_loss": (tdt_loss, {"token_logits": torch.zeros(2, 4, 3, 6), "duration_logits": torch.zeros(2, 4, 3, 3),
                            "durations": [0, 1, 2]}),
    "multi_blank_rnnt_loss": (multi_blank_rnnt_loss, {"logits": torch.zeros(2, 4, 3, 6), "big_blanks": [1, -1],
                                                      "big_blank_durations": [2, 3]}),
    "ar_rnnt_loss": (ar_rnnt_loss, {"logits": torch.zeros(2, 4, 3, 6), "alignment": [[0, 2], [1, -1]], "left": 1,
                                    "right": 1}),
    "wildcard_rnnt_loss": (wildcard_rnnt_loss, {"logits": torch.zeros(2, 4, 3, 6)}),
}  # fmt: skip
SEPARATE = [name for name in FUNCTIONS if not name.startswith("rnnt")]


def raises(error, name, message, **changes):
    """The legal call with the changes raises the error, with exactly this message."""
    function, arguments = FUNCTIONS[name]
    for impl in ("auto", "numba", "reference"):
        with pytest.raises(error) as caught:
            function(**INTEGERS | arguments | {"impl": impl} | changes)
        assert str(caught.value) == f"{name}: {message}"
        assert isinstance(caught.value, TypeError if error is TYPE else ValueError)
        assert caught.value.function == name
        assert caught.value.argument == message.split()[0]
    return caught.value


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_legal_call_is_legal(name):
    function, arguments = FUNCTIONS[name]
    assert function(**INTEGERS | arguments).isfinite()


@pytest.mark.parametrize("name", ["rnnt_loss", "rnnt_packed_loss", "ar_rnnt_loss"])
def test_options_of_the_transducer(name):
    types = "regular, modified, one_sym_per_frame, constrained"
    raises(VALUE, name, f"rnnt_type must be one of {types}; got 'simple'", rnnt_type="simple")
    raises(VALUE, name, "delay_penalty must be finite; got inf", delay_penalty=float("inf"))
    raises(TYPE, name, "delay_penalty must be a number; got str", delay_penalty="1")


@pytest.mark.parametrize("name", ["rnnt_loss", "rnnt_packed_loss"])
def test_options_that_do_not_go_together(name):
    raises(VALUE, name, "hat must be False with fused_log_softmax=False; got True", hat=True, fused_log_softmax=False)
    message = (
        "overwrite_logits must be False with another rnnt_type than regular, with delay_penalty and with hat; got True"
    )
    for option in ({"rnnt_type": "modified"}, {"delay_penalty": 0.1}, {"hat": True}):
        raises(VALUE, name, message, overwrite_logits=True, **option)


@pytest.mark.parametrize("name", SEPARATE)
def test_the_rules_of_every_loss_hold(name):
    logits = "token_logits" if name == "tdt_loss" else "logits"
    dtypes = "float32, float64, bfloat16, float16"
    raises(TYPE, name, f"{logits} must have dtype {dtypes}; got list", **{logits: [0.0]})
    message = f"{logits} must have shape (N, T, U+1, V) or (T, U+1, V) or (rows, V); got shape (6,)"
    raises(VALUE, name, message, **{logits: torch.zeros(6)})
    message = f"{logits} must have shape (N, T, U+1, V); got shape (2, 4, 0, 6)"
    raises(VALUE, name, message, **{logits: torch.zeros(2, 4, 0, 6)})
    message = f"{logits} must have sum(T_n * (U_n + 1)) = 18 rows; got 5 rows"
    raises(VALUE, name, message, **{logits: torch.zeros(5, 6)})
    raises(VALUE, name, "blank must lie in [-6, 6); got 6", blank=6)
    raises(VALUE, name, "reduction must be one of none, mean, sum; got 'all'", reduction="all")
    raises(VALUE, name, "clamp must be finite; got nan", clamp=float("nan"))
    raises(VALUE, name, "fastemit_lambda must be finite and at least 0; got -1", fastemit_lambda=-1)
    error = raises(VALUE, name, "targets must lie in [0, C) with C = 6; got 6 at sample 1", targets=[[2, 3], [6, 2]])
    assert error.sample == 1


@pytest.mark.parametrize("name", ["tdt_loss", "wildcard_rnnt_loss"])
def test_how_a_path_may_end(name):
    raises(VALUE, name, "final must be one of blank, any; got 'label'", final="label")


def test_tdt():
    def refuses(message, **changes):
        return raises(VALUE, "tdt_loss", message, **changes)

    refuses("durations must be at least 0; got -1", durations=[0, -1, 2])
    refuses("durations must be different from one another; got [1, 1, 2]", durations=[1, 1, 2])
    refuses("durations must have one or more entries; got []", durations=[])
    refuses("durations must have one above 0; got [0]", durations=[0])
    refuses("duration_logits must have shape (..., D) = (2, 4, 3, 2); got shape (2, 4, 3, 3)", durations=[0, 1])
    refuses("sigma must be finite; got inf", sigma=float("inf"))
    raises(TYPE, "tdt_loss", "durations must be an int; got float", durations=[0, 1.0, 2])
    message = "duration_logits must have dtype float32, float64, bfloat16, float16; got int64"
    raises(TYPE, "tdt_loss", message, duration_logits=torch.zeros(2, 4, 3, 3, dtype=torch.int64))
    message = "duration_logits must be on cpu, as the scores are; got meta"
    raises(TYPE, "tdt_loss", message, duration_logits=torch.zeros(2, 4, 3, 3, device="meta"))


def test_multi_blank():
    def refuses(message, **changes):
        return raises(VALUE, "multi_blank_rnnt_loss", message, **changes)

    refuses("big_blank_durations must be at least 1; got 0", big_blank_durations=[2, 0])
    refuses("big_blank_durations must have one or more entries; got []", big_blank_durations=[])
    refuses("big_blanks must have one class a duration, 2; got [1]", big_blanks=[1])
    refuses("big_blanks must lie in [-6, 6); got [1, 6]", big_blanks=[1, 6])
    refuses("big_blanks must be at least -6; got -7", big_blanks=[1, -7])
    refuses("big_blanks must differ from the blank, 0, and from one another; got [1, -6]", big_blanks=[1, -6])
    refuses("big_blanks must differ from the blank, 0, and from one another; got [1, -5]", big_blanks=[1, -5])
    error = refuses("targets must not contain a big blank; got 5 at sample 1", targets=[[2, 3], [5, 2]])
    assert error.sample == 1
    raises(TYPE, "multi_blank_rnnt_loss", "big_blanks must be an int; got str", big_blanks=["1", "2"])


def test_alignment():
    def refuses(message, **changes):
        return raises(VALUE, "ar_rnnt_loss", message, **changes)

    error = refuses("alignment must lie in [0, T_n) with T_n = 3; got 3 at sample 1", alignment=[[0, 1], [3, 0]])
    assert error.sample == 1
    rule = "have a row a sample, N = 2, with a frame for each of its labels"
    refuses(f"alignment must {rule}; got shape (2, 1)", alignment=[[0], [1]])
    refuses(f"alignment must {rule}; got shape (1, 2)", alignment=[[0, 1]])
    message = "alignment must have sum(target_lengths) = 3 entries when concatenated; got 2 entries"
    refuses(message, alignment=[0, 1])
    refuses("left must be at least 0; got -1", left=-1)
    refuses("right must be at least 0; got -2", right=-2)
    raises(TYPE, "ar_rnnt_loss", "left must be an int; got float", left=1.0)
    raises(TYPE, "ar_rnnt_loss", "alignment must have an integer dtype; got float64", alignment=[[0.5, 1], [1, 1]])


def test_concatenated_alignments():
    function, arguments = FUNCTIONS["ar_rnnt_loss"]
    padded = function(**INTEGERS | arguments)
    assert function(**INTEGERS | arguments | {"alignment": [0, 2, 1]}) == padded
    assert function(**INTEGERS | arguments | {"alignment": torch.tensor([[0, 2, 9], [1, 9, 9]])}) == padded

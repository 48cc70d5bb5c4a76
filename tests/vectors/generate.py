"""Write the golden vectors beside this file, one peer at a time: ``python generate.py PEER``, where PEER is installed.

Inputs are drawn here, by NumPy alone, and stored with the peer's losses and gradients, name and
version. The gradients are those of the sum of the losses, except where a vector's ``options`` say otherwise.
Nothing of this library is imported.
"""

import json
import os
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
import jax_client  # noqa: E402

DECIMALS = 3  # of the logits, so that their text is exact


def grid_case(seed, num_samples, num_frames, num_labels, num_classes, blank, std=1.0):
    """Logits (N, T, U+1, V); the first sample fills the padded size, as peers require, the others need not."""
    random = np.random.default_rng(seed)
    shape = (num_samples, num_frames, num_labels + 1, num_classes)
    logits = (std * random.standard_normal(shape)).round(DECIMALS).astype(np.float32)
    logit_lengths = random.integers(1, num_frames + 1, num_samples)
    target_lengths = random.integers(0, num_labels + 1, num_samples)
    logit_lengths[0], target_lengths[0] = num_frames, num_labels
    labels = np.delete(np.arange(num_classes), blank)
    targets = labels[random.integers(0, len(labels), (num_samples, num_labels))]
    return {"logits": logits, "targets": targets, "logit_lengths": logit_lengths, "target_lengths": target_lengths}


def chain_case(seed, num_frames, num_samples, num_classes, num_labels):
    """Logits (N, T, C) with blank 0, every sample feasible, the first target's first label its last too."""
    random = np.random.default_rng(seed)
    targets = random.integers(1, num_classes, (num_samples, num_labels))
    targets[0, -1] = targets[0, 0]
    target_lengths = random.integers(1, num_labels + 1, num_samples)
    target_lengths[0] = num_labels
    return {
        "logits": random.standard_normal((num_samples, num_frames, num_classes)).round(DECIMALS).astype(np.float32),
        "targets": targets,
        "input_lengths": random.integers(2 * num_labels, num_frames + 1, num_samples),
        "target_lengths": target_lengths,
    }


GRID_CASES = [
    (grid_case(1, 3, 6, 3, 5, blank=4), 4),  # ragged, blank last
    (grid_case(2, 2, 4, 4, 3, blank=0, std=4.0), 0),  # more labels than frames, peaky, blank first
    (grid_case(3, 1, 1, 1, 2, blank=1), 1),  # a single frame
]
CHAIN_CASES = [
    chain_case(4, 9, 3, 4, 3),  # ragged
    chain_case(5, 5, 2, 3, 2),  # two labels that are the same one: a blank between them is a must
    chain_case(6, 2, 1, 2, 1),  # two frames, one label
]


def paddings_case(seed, labels, num_frames, num_classes=5, std=1.0, logit_paddings=None):
    """Logits (N, T, C) and lists of labels, frames padded as said, a list of padded frames a sample."""
    random = np.random.default_rng(seed)
    num_samples, num_labels = len(labels), max(map(len, labels))
    case = {
        "logits": (std * random.standard_normal((num_samples, num_frames, num_classes))).round(DECIMALS),
        "logit_paddings": np.zeros((num_samples, num_frames)),
        "labels": np.ones((num_samples, num_labels), int),
        "label_paddings": np.ones((num_samples, num_labels)),
    }
    for n, own in enumerate(labels):
        case["labels"][n, : len(own)], case["label_paddings"][n, : len(own)] = own, 0
        case["logit_paddings"][n, (logit_paddings or [[]] * num_samples)[n]] = 1
    return {name: array.astype(np.float32) if array.dtype == float else array for name, array in case.items()}


OPTAX_CASES = [
    (paddings_case(1, [[1, 2, 3], [4, 4], []], 7, logit_paddings=[[], [6], [5, 6]]), {}),  # ragged
    (paddings_case(2, [[0, 1, 3], [3, 3, 0]], 6, std=4.0), {"blank_id": 2}),  # peaky
    (paddings_case(3, [[1, 2, 3], [1, 1], [2]], 2, logit_paddings=[[], [], [0, 1]]), {}),  # no target fits
    (paddings_case(4, [[1, 2, 2], [3]], 6, logit_paddings=[[1], [0, 3, 5]]), {}),  # padding between frames
    (paddings_case(5, [[1, 7], [1, -1], [0, 2], [0, 0]], 5), {}),  # labels out of range, and the blank
    (paddings_case(6, [[1, 4, 3], [1, 1]], 5), {"log_epsilon": -5.0}),  # what is impossible is not so very much so
    (paddings_case(7, [[1, 2], [3]], 50, std=4000.0), {}),  # losses beyond 1e5
]


def torchaudio():
    import torch
    import torchaudio

    vectors = []
    for case, blank in GRID_CASES:
        for options in ({}, {"fused_log_softmax": False}, {"clamp": 0.1}):
            scores = torch.from_numpy(case["logits"])
            if options.get("fused_log_softmax") is False:
                # Its loss then takes log-probabilities, and answers with the gradient of the logits behind them.
                scores = scores.log_softmax(-1)
            scores.requires_grad_()
            losses = torchaudio.functional.rnnt_loss(
                scores, *integers(torch, case), blank=blank, reduction="none", **options
            )
            losses.sum().backward()
            vectors.append(vector(case, blank, options, losses.detach().numpy(), scores.grad.numpy()))
    return "torchaudio.functional.rnnt_loss", version("torchaudio"), vectors


def torchaudio_forced_align():
    import torch
    from torchaudio.functional import forced_align

    vectors = []
    for blank, scale, case in [
        (0, 1.0, CHAIN_CASES[0]),
        (3, 1.0, CHAIN_CASES[0]),  # blank last
        (0, 1.0, CHAIN_CASES[1]),
        (0, 1.0, CHAIN_CASES[2]),
        (0, 0.0, CHAIN_CASES[0]),  # every path as good as any other
    ]:
        for n, (length, labels) in enumerate(zip(case["input_lengths"], case["target_lengths"], strict=True)):
            logits = (scale * case["logits"][n, :length]).astype(np.float64).round(DECIMALS)
            target = np.where(case["targets"][n, :labels] == blank, 0, case["targets"][n, :labels])
            path, scores = forced_align(torch.from_numpy(logits)[None], torch.from_numpy(target)[None], blank=blank)
            vectors.append(
                {
                    "blank": blank,
                    "logits": logits.tolist(),
                    "target": target.tolist(),
                    "path": path[0].tolist(),
                    "scores": scores[0].tolist(),
                }
            )
    return "torchaudio.functional.forced_align", version("torchaudio"), vectors


def warprnnt_numba():
    import torch
    from warprnnt_numba import RNNTLossNumba

    vectors = []
    for case, blank in GRID_CASES:
        for options in ({}, {"fastemit_lambda": 0.01}, {"clamp": 0.1}, {"fastemit_lambda": 0.5, "clamp": 0.2}):
            logits = torch.from_numpy(case["logits"]).requires_grad_()
            losses = RNNTLossNumba(blank=blank, reduction="none", **options)(logits, *integers(torch, case))
            losses.sum().backward()
            vectors.append(vector(case, blank, options, losses.detach().numpy(), logits.grad.numpy()))
    return "warprnnt_numba.RNNTLossNumba (CPU)", version("warprnnt-numba"), vectors


def warprnnt_numba_readme():
    """The example of its README, its scores rounded; its labels are wider than U and begin with the blank."""
    import torch
    from warprnnt_numba import RNNTLossNumba

    torch.random.manual_seed(0)
    case = {
        "logits": torch.randn(2, 8, 5, 5).numpy().round(DECIMALS),
        "targets": np.array([[4, 1, 1, 3, 0], [4, 2, 2, 3, 1]]),
        "logit_lengths": np.array([5, 8]),
        "target_lengths": np.array([3, 4]),
    }
    logits = torch.from_numpy(case["logits"]).requires_grad_()
    losses = RNNTLossNumba(blank=4, reduction="none", fastemit_lambda=0.0, clamp=0.0)(logits, *integers(torch, case))
    losses.sum().backward()
    answer = vector(case, 4, {}, losses.detach().numpy(), logits.grad.numpy())
    return "warprnnt_numba.RNNTLossNumba, the example of its README (CPU)", version("warprnnt-numba"), [answer]


def tf_seq2seq_losses():
    import tensorflow as tf
    from tf_seq2seq_losses import classic_ctc_loss, simplified_ctc_loss

    vectors = []
    for case in CHAIN_CASES:
        for name, function in (("ctc_loss", classic_ctc_loss), ("simple_ctc_loss", simplified_ctc_loss)):
            logits = tf.constant(case["logits"])
            integer = {
                "labels": tf.constant(case["targets"], tf.int32),
                "label_length": tf.constant(case["target_lengths"], tf.int32),
                "logit_length": tf.constant(case["input_lengths"], tf.int32),
            }
            with tf.GradientTape() as tape:
                tape.watch(logits)
                losses = function(logits=logits, blank_index=0, **integer)
                total = tf.reduce_sum(losses)
            gradient = tape.gradient(total, logits)
            vectors.append(vector(case, 0, {"function": name}, losses.numpy(), gradient.numpy()))
    return "tf_seq2seq_losses.classic_ctc_loss, simplified_ctc_loss", version("tf-seq2seq-losses"), vectors


def tf_seq2seq_losses_hessian():
    """Hessians (N, T, C, T, C) of the losses by log-probabilities."""
    import tensorflow as tf
    from tf_seq2seq_losses.classic_ctc_loss import ClassicCtcLossData
    from tf_seq2seq_losses.simplified_ctc_loss import SimplifiedCtcLossData

    vectors = []
    for case in CHAIN_CASES[1:]:
        for name, data in (("ctc_loss", ClassicCtcLossData), ("simple_ctc_loss", SimplifiedCtcLossData)):
            solved = data(
                labels=tf.constant(case["targets"], tf.int32),
                logprobas=tf.nn.log_softmax(tf.constant(case["logits"], tf.float32)),
                label_length=tf.constant(case["target_lengths"], tf.int32),
                logit_length=tf.constant(case["input_lengths"], tf.int32),
                blank_index=0,
            )
            own = vector(case, 0, {"function": name}, solved.loss.numpy(), solved.gradient.numpy())
            vectors.append(own | {"hessian": solved.hessian.numpy().astype(np.float64).round(7).tolist()})
    name = "tf_seq2seq_losses' ClassicCtcLossData, SimplifiedCtcLossData"
    return name, version("tf-seq2seq-losses"), vectors


def optimized_transducer():
    import torch
    from optimized_transducer import transducer_loss

    vectors = []
    for case, blank in GRID_CASES:
        rows = [
            case["logits"][n, :t, : u + 1].reshape(-1, case["logits"].shape[-1])
            for n, (t, u) in enumerate(zip(case["logit_lengths"], case["target_lengths"], strict=True))
        ]
        packed = np.concatenate(rows)
        for reduction in ("sum", "mean"):
            # Leaves take the gradient over their own memory, hence the copy.
            leaf = torch.from_numpy(packed.copy()).requires_grad_()
            loss = transducer_loss(leaf * 1, *integers(torch, case), blank, False, reduction=reduction)
            loss.backward()
            vectors.append(
                vector(case | {"logits": packed}, blank, {"reduction": reduction}, loss.item(), leaf.grad.numpy())
            )
    return "optimized_transducer.transducer_loss (CPU)", version("optimized-transducer"), vectors


def optimized_transducer_readme():
    """The example of its README: a joiner over the real frames alone, then the loss; the gradient is by its weight."""
    import torch
    from optimized_transducer import transducer_loss

    torch.random.manual_seed(0)
    num_samples, num_frames, num_positions, width, num_classes = 2, 6, 4, 4, 5
    shapes = {
        "encoder_out": (num_samples, num_frames, width),
        "decoder_out": (num_samples, num_positions, width),
        "weight": (num_classes, width),
        "bias": (num_classes,),
    }
    scores = {name: torch.rand(shape).numpy().round(DECIMALS) for name, shape in shapes.items()}
    encoder_out, decoder_out, weight, bias = map(torch.from_numpy, scores.values())
    case = {"targets": [[1, 2, 0], [4, 4, 3]], "logit_lengths": [6, 4], "target_lengths": [2, 3]}
    x = [
        (encoder_out[i, :t].unsqueeze(1) + decoder_out[i, : u + 1].unsqueeze(0)).reshape(-1, width)
        for i, (t, u) in enumerate(zip(case["logit_lengths"], case["target_lengths"], strict=True))
    ]
    logits = torch.tanh(torch.cat(x)) @ weight.requires_grad_().T + bias
    loss = transducer_loss(logits, *integers(torch, case), blank=0, reduction="mean", from_log_softmax=False)
    loss.backward()
    numbers = scores | {"losses": loss.item(), "gradient": weight.grad.numpy()}
    answer = case | {name: np.asarray(array, np.float64).round(9).tolist() for name, array in numbers.items()}
    return "optimized_transducer.transducer_loss (CPU)", "1.4+g863667a", [{"options": {}} | answer]


def speechbrain():
    """Its own CUDA kernels in numba's simulator, for they run nowhere else: its docstring's example, and others."""
    os.environ["NUMBA_ENABLE_CUDASIM"] = "1"
    import torch
    from speechbrain.integrations.numba.transducer_loss import Transducer

    torch.random.manual_seed(0)
    docstring = {
        "logits": torch.randn((1, 2, 3, 5)).numpy().round(DECIMALS),
        "targets": np.array([[1, 2]]),
        "logit_lengths": np.array([2]),
        "target_lengths": np.array([2]),
    }
    (ragged, last), (peaky, first), _ = GRID_CASES
    blanks_among = ragged | {"targets": np.array([[last, 2, last], [1, 1, 2], [last, 0, 0]])}
    vectors = []
    for case, blank, reduction in [
        (docstring, 0, "mean"),
        *((ragged, last, reduction) for reduction in ("none", "sum", "mean")),
        (peaky, first, "mean"),
        (blanks_among, last, "mean"),
    ]:
        logits = torch.from_numpy(case["logits"]).requires_grad_()
        loss = Transducer.apply(logits.log_softmax(-1), *integers(torch, case), blank, reduction)
        loss.sum().backward()
        vectors.append(vector(case, blank, {"reduction": reduction}, loss.detach().numpy(), logits.grad.numpy()))
    return "speechbrain Transducer (numba's CUDA simulator)", version("speechbrain"), vectors


def torch_asg():
    """Its README's example, and one whose samples differ in length.

    It compiles with torch 2.11 once ``sum({0, 1})`` in fully_connected_lattice.cpp is told its argument's type.
    """
    import torch
    from torch_asg import ASGLoss

    vectors = []
    for seed, lengths in ((0, ([6, 6], [5, 5])), (1, ([6, 4], [3, 2]))):
        torch.random.manual_seed(seed)
        num_labels, input_batch_len, num_batches, target_batch_len = 7, 6, 2, 5
        case = {
            "logits": torch.randn(input_batch_len, num_batches, num_labels).numpy().round(DECIMALS),
            "targets": torch.randint(0, num_labels, (num_batches, target_batch_len)).numpy(),
        }
        case["input_lengths"], case["target_lengths"] = (np.array(length) for length in lengths)
        for reduction in ("mean", "sum", "none"):
            criterion = ASGLoss(
                num_labels=num_labels, reduction=reduction, gpu_no_stream_impl=False, forward_only=False
            )
            inputs = torch.from_numpy(case["logits"]).requires_grad_()
            names = ("targets", "input_lengths", "target_lengths")
            loss = criterion.forward(inputs, *(torch.from_numpy(case[name]) for name in names))
            loss.sum().backward()
            answer = vector(case, None, {"reduction": reduction}, loss.detach().numpy(), inputs.grad.numpy())
            vectors.append(answer | {"transition_gradient": criterion.transition.grad.numpy().round(9).tolist()})
    return "torch_asg.ASGLoss (CPU)", "4d081ae", vectors


def optax():
    import jax
    import jax.numpy as jnp
    import optax

    vectors = []
    for case, options in OPTAX_CASES:
        rest = [jnp.asarray(case[name]) for name in ("logit_paddings", "labels", "label_paddings")]

        def losses(logits, rest=rest, options=options):
            return optax.ctc_loss(logits, *rest, **options)

        logits = jnp.asarray(case["logits"])
        gradient = jax.grad(lambda logits, losses=losses: losses(logits).sum())(logits)
        own = vector(case, options.get("blank_id", 0), options, losses(logits), gradient)
        _, blanks, labels = optax.ctc_loss_with_forward_probs(logits, *rest, **options)
        probs = {"forward_blanks": blanks, "forward_labels": labels}
        vectors.append(own | {name: np.asarray(array, float).round(6).tolist() for name, array in probs.items()})
    training = {"options": {}, "losses": jax_client.train(optax.ctc_loss)}
    return "optax.ctc_loss, optax.ctc_loss_with_forward_probs (CPU)", version("optax"), [*vectors, training]


def integers(torch, case):
    return [
        torch.from_numpy(np.asarray(case[name], np.int32)) for name in ("targets", "logit_lengths", "target_lengths")
    ]


def vector(case, blank, options, losses, gradient):
    inputs = {name: array.tolist() for name, array in case.items() if name != "logits"}
    numbers = {"logits": (case["logits"], DECIMALS), "losses": (losses, 9), "gradient": (gradient, 9)}
    rounded = {name: np.asarray(array, np.float64).round(digits).tolist() for name, (array, digits) in numbers.items()}
    return {"options": options, "blank": blank} | inputs | rounded


PEERS = {
    function.__name__: function
    for function in (
        torchaudio,
        torchaudio_forced_align,
        warprnnt_numba,
        warprnnt_numba_readme,
        tf_seq2seq_losses,
        tf_seq2seq_losses_hessian,
        optimized_transducer,
        optimized_transducer_readme,
        optax,
        speechbrain,
        torch_asg,
    )
}

if __name__ == "__main__":
    for peer in sys.argv[1:]:
        name, its_version, vectors = PEERS[peer]()
        document = {"peer": name, "version": its_version, "vectors": vectors}
        (HERE / f"{peer}.json").write_text(json.dumps(document) + "\n")

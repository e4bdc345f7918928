"""The functions and classes of torch that a stored module may name: an allow list, not whatever can be imported."""

from __future__ import annotations

import importlib
from functools import cache
from typing import Any

from torch import nn

__all__ = ["class_named", "function_named", "name_of_function"]

_ALLOWED = {
    "torch.nn.functional": """
        adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d
        adaptive_max_pool3d alpha_dropout avg_pool1d avg_pool2d avg_pool3d binary_cross_entropy
        binary_cross_entropy_with_logits celu cosine_embedding_loss cosine_similarity cross_entropy ctc_loss dropout dropout1d
        dropout2d dropout3d elu feature_alpha_dropout gaussian_nll_loss gelu glu group_norm gumbel_softmax hardshrink
        hardsigmoid hardswish hardtanh hinge_embedding_loss huber_loss instance_norm interpolate kl_div l1_loss layer_norm
        leaky_relu linear local_response_norm log_softmax logsigmoid lp_pool1d lp_pool2d margin_ranking_loss max_pool1d
        max_pool2d max_pool3d mish mse_loss multi_margin_loss multilabel_margin_loss multilabel_soft_margin_loss nll_loss
        normalize one_hot pad pairwise_distance pixel_shuffle pixel_unshuffle poisson_nll_loss prelu relu relu6 relu_
        rms_norm rrelu scaled_dot_product_attention selu sigmoid silu smooth_l1_loss soft_margin_loss softmax softmin softplus
        softshrink softsign tanh tanhshrink threshold triplet_margin_loss triplet_margin_with_distance_loss unfold
    """,
    "torch": """
        abs add arctan asinh atan bmm cat celu clamp cos cosh div dropout erf exp expm1 floor log log10 log1p log2
        log_softmax logsumexp matmul max maximum mean min minimum mul neg norm prelu prod reciprocal relu relu_ round rsqrt
        selu sigmoid sigmoid_ sign sin sinh sinc softmax sqrt square stack std sub sum tan tanh tanh_ var where
    """,
    "torch.nn.init": """
        constant_ dirac_ eye_ kaiming_normal_ kaiming_uniform_ normal_ ones_ orthogonal_ sparse_ trunc_normal_ uniform_
        xavier_normal_ xavier_uniform_ zeros_
    """,
}


@cache
def _functions() -> dict[str, Any]:
    found = {}
    for module, names in _ALLOWED.items():
        for name in names.split():
            function = getattr(importlib.import_module(module), name, None)
            if function is not None:  # a name may be younger than the torch that is installed
                found[f"{module}:{name}"] = function
    return found


def name_of_function(function: Any) -> str | None:
    """Return where an allowed function of torch is found; None if it is not allowed.

    Examples
    --------
    >>> import torch
    >>> name_of_function(torch.relu), name_of_function(torch.load)
    ('torch:relu', None)
    """
    return next((location for location, known in _functions().items() if known is function), None)


def function_named(location: str) -> Any | None:
    """Return the allowed function of torch at ``module:name``; None if there is none."""
    return _functions().get(location)


def class_named(location: str) -> type[nn.Module] | None:
    """Return the module class of ``torch.nn`` at ``module:qualname``; None if there is none.

    Examples
    --------
    >>> class_named("torch.nn.modules.linear:Linear")
    <class 'torch.nn.modules.linear.Linear'>
    >>> class_named("torch.nn.modules.linear:torch.load") is None
    True
    """
    module, _, name = location.partition(":")
    if not module.startswith("torch.nn.") or not name.isidentifier():
        return None
    try:
        found = vars(importlib.import_module(module)).get(name)
    except ImportError:
        return None
    return found if isinstance(found, type) and issubclass(found, nn.Module) else None

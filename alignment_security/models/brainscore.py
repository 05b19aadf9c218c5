"""Load Brain-Score models: the bare network of a plugin, and its preprocessing found by probing.

Nothing that the plugin says about itself is used.
"""

from __future__ import annotations

import os

from torch import nn

from alignment_security.common.settings import IMAGENET_CLASSES
from alignment_security.models.heads import ModelError
from alignment_security.models.loaded_net import LoadedNet, checked_net, in_one_line
from alignment_security.models.preprocessing import measured_preprocessing

INSTALL_HINT = "use a separate environment: pip install -r requirements-brainscore.txt"


def load_plugin(name: str):
    """The activations model of a registered Brain-Score model. Raises ModelError.

    brainscore_core would run `pip install` for a plugin's requirements. To prevent that,
    BS_INSTALL_DEPENDENCIES=no is set in the environment unless the variable is set already.
    """
    os.environ.setdefault("BS_INSTALL_DEPENDENCIES", "no")
    try:
        import brainscore_vision
    except ImportError as error:
        raise ModelError(
            f"{name}: Brain-Score's models need brainscore-vision ({error}); {INSTALL_HINT}"
        ) from None
    try:
        made = brainscore_vision.model_registry.get(name)  # one that the caller registered
        model = made() if made else brainscore_vision.load_model(name)
    except Exception as error:  # a plugin's own code may raise anything
        raise ModelError(
            f"{name}: brainscore-vision cannot load it ({in_one_line(error)}); see `python "
            "utilities.py models --list brainscore`, and download weights on a machine with network"
        ) from None
    return getattr(model, "activations_model", model)


def load_brainscore(name: str, identifier: str = "") -> LoadedNet:
    """The network of a Brain-Score model, which maps normalised pixels to the 1000 ImageNet logits.

    identifier   of the model in Brain-Score's registry; `name` where it is empty

    Raises ModelError for a model that is not a PyTorch network, whose preprocessing cannot be
    measured, or that does not give 1000 logits in float32.
    """
    identifier = identifier or name
    wrapper = load_plugin(identifier)
    net = getattr(wrapper, "_model", None)
    extractor = getattr(wrapper, "_extractor", None)
    if not isinstance(net, nn.Module) or extractor is None:
        kind = type(wrapper).__name__
        raise ModelError(f"{name}: is no PyTorch net behind Brain-Score's PytorchWrapper ({kind})")
    options = getattr(wrapper, "_forward_kwargs", None)
    if options:
        names = ", ".join(options)
        raise ModelError(f"{name}: its forward pass takes options ({names}), attacks pass none")
    config = measured_preprocessing(extractor.preprocess, name)
    loaded = checked_net(net, f"brainscore:{identifier}", config, name, IMAGENET_CLASSES)
    if loaded.n_outputs != IMAGENET_CLASSES:
        raise ModelError(
            f"{name}: gives {loaded.n_outputs} logits, not the {IMAGENET_CLASSES} of ImageNet"
        )
    return loaded

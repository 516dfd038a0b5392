"""An encoder as transformers' config describes it: numbers and names, each checked where it is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from mimbench.backbones.config import Activation, Traits

ACTIVATIONS: dict[str, Activation] = {  # transformers' names of the functions that ours have
    "gelu": "gelu",
    "gelu_python": "gelu",
    "quick_gelu": "quick_gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}


@dataclass(frozen=True)
class Described:
    """An encoder as a config describes it; each question refuses, naming its key, what the config cannot mean."""

    values: Mapping[str, Any]  # of the encoder's own config
    defaults: Mapping[str, Any]  # of its model type

    def __getitem__(self, key: str) -> Any:
        return self.values.get(key, self.defaults[key])

    def has(self, key: str) -> bool:
        """Return whether the model type has this key."""
        return key in self.defaults

    def number(self, key: str) -> int:
        """Return a whole number above 0.

        Raises:
            ValueError: if it is none, naming the key.
        """
        value = self[key]
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{said(key, value)}, which is no number above 0")
        return value

    def side(self, key: str) -> int:
        """Return a side in pixels: a number, or two equal ones.

        Raises:
            ValueError: if it is neither, naming the key.
        """
        value = self[key]
        if isinstance(value, list | tuple) and len(value) == 2 and value[0] == value[1]:
            return replace(self, values={key: value[0]}).number(key)
        if isinstance(value, list | tuple):
            raise ValueError(f"{said(key, list(value))}, and images and patches must be square")
        return self.number(key)

    @cached_property
    def width(self) -> int:
        """Return the encoder's width, which the heads must divide.

        Raises:
            ValueError: if `num_attention_heads` or `head_dim` say otherwise.
        """
        width, heads = self.number("hidden_size"), self.number("num_attention_heads")
        if width % heads:
            raise ValueError(f"{said('num_attention_heads', heads)}, which does not divide hidden_size={width}")
        own = self.values.get("head_dim", width // heads)
        if own != width // heads:
            raise ValueError(
                f"{said('head_dim', own)}, and only heads of hidden_size / num_attention_heads are supported"
            )
        return width

    @cached_property
    def hidden(self) -> int:
        """Return the width inside the MLP; DINOv2's gated product has two thirds of it, up to a multiple of 8."""
        if self.has("mlp_dim") and self.values.get("mlp_dim") is not None:  # SAM's, else as many as mlp_ratio says
            return self.number("mlp_dim")
        if not self.has("mlp_ratio"):
            return self.number("intermediate_size")
        inside = int(self.width * self["mlp_ratio"])
        gated = self.has("use_swiglu_ffn") and self["use_swiglu_ffn"]
        return (int(inside * 2 / 3) + 7) // 8 * 8 if gated else inside

    @cached_property
    def grid(self) -> int:
        """Return the patches along one side of a pretraining image.

        Raises:
            ValueError: if the images are smaller than a patch, or SigLIP 2's patches are of no square grid.
        """
        if self.has("num_patches"):
            side = round(self.number("num_patches") ** 0.5)
            if side * side != self["num_patches"]:
                raise ValueError(f"{said('num_patches', self['num_patches'])}, which is no square grid")
            return side
        key = "pretrain_image_size" if self.has("pretrain_image_size") else "image_size"
        if self.side(key) < self.side("patch_size"):
            raise ValueError(f"{said(key, self[key])}, which is less than patch_size={self['patch_size']}")
        return self.side(key) // self.side("patch_size")

    def activation(self) -> Activation:
        """Return the MLP's activation.

        Raises:
            ValueError: if it is not supported.
        """
        if self["hidden_act"] not in ACTIVATIONS:
            raise ValueError(f"{said('hidden_act', self['hidden_act'])}; supported are {', '.join(ACTIVATIONS)}")
        return ACTIVATIONS[self["hidden_act"]]

    def traits(self, **more: Any) -> Traits:
        """Return the traits that all model types tell alike, and `more`."""
        shared: dict[str, Any] = {"norm_eps": self["layer_norm_eps"]}
        shared["hidden"] = None if self.hidden == 4 * self.width else self.hidden
        if self.has("qkv_bias"):
            shared["qkv_bias"] = self["qkv_bias"]
        if more.get("mlp", "mlp") == "mlp":
            shared["activation"] = self.activation()
        return Traits(**{**shared, **more})


def said(key: str, value: object) -> str:
    """Return how errors name a key and its value."""
    return f"config.json says {key}={value}"

"""Configs: text and back, overrides with the way out in every complaint, and identities."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import pytest

from mimbench.engine.run import fields
from mimbench.engine.run.config import (
    Compute,
    from_text,
    identity,
    keys,
    leaves,
    nested,
    plumbing,
    science,
    speed,
    to_text,
    with_overrides,
)


@dataclass(frozen=True)
class Shape:
    """A part."""

    width: int = science(8)
    depth: int = science(2)

    def __post_init__(self) -> None:
        if self.width % 4:
            raise ValueError(f"width={self.width} must be a multiple of 4")


@dataclass(frozen=True)
class A:
    """One member of a union."""

    kind: Literal["a"] = science("a")
    x: int = science(1)
    ratio: float = science(0.5)


@dataclass(frozen=True)
class B:
    """The other."""

    kind: Literal["b"] = science("b")
    y: tuple[int, ...] = science((1, 2))
    ratio: float = science(0.25)


@dataclass(frozen=True)
class Config:
    """A config with everything a config may hold."""

    data: str = science("imagenet")
    checkpoint: str | None = science(None)
    shape: Shape = field(default_factory=Shape)
    m: A | B = field(default_factory=B)
    lr: float = science(0.1)
    epochs: int = science(5)
    grad_clip: float | None = science(None)
    betas: tuple[float, float] = science((0.9, 0.95))
    words: tuple[str, ...] = science(("one",))
    flag: bool = science(False)
    seed: int = science(0)
    compute: Compute = field(default_factory=Compute)
    note: str = plumbing("")


def _refusal(*overrides: str) -> str:
    with pytest.raises(ValueError) as caught:
        with_overrides(Config(), overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "config",
    [
        Config(),
        Config(data='a "quoted" path/with\\backslash, comma', note="tab\tnew\nline # not a comment \x7f é"),
        Config(lr=1e-05, grad_clip=float("inf"), betas=(0.0, 1e22), words=()),
        Config(checkpoint="/some where/e.safetensors", m=A(x=-3), flag=True, compute=Compute(threads=3)),
    ],
)
def test_text_and_back(config: Config) -> None:
    assert from_text(Config, to_text(config)) == config


def test_text_is_one_line_a_value_and_says_what_is_not_science() -> None:
    text = to_text(Config())
    assert text.splitlines()[:4] == ['data = "imagenet"', 'checkpoint = "none"', "shape.width = 8", "shape.depth = 2"]
    assert 'compute.workers = "auto"  # speed' in text
    assert 'note = ""  # plumbing' in text
    assert len(text.splitlines()) == len(list(leaves(Config())))


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("data=coco", "data", "coco"),
        ("data=2017", "data", "2017"),
        ("data=true", "data", "true"),
        ("data='quoted'", "data", "quoted"),
        ("data=a=b", "data", "a=b"),
        ("data=", "data", ""),
        ("checkpoint=/a b/c.pth", "checkpoint", "/a b/c.pth"),
        ("checkpoint=none", "checkpoint", None),
        ("epochs=1e2", "epochs", 100),
        ("lr=3", "lr", 3.0),
        ("lr=3e-4", "lr", 3e-4),
        ("grad_clip=1", "grad_clip", 1.0),
        ("betas=0.9,0.999", "betas", (0.9, 0.999)),
        ("betas=[0.5, 0.6]", "betas", (0.5, 0.6)),
        ("words=a", "words", ("a",)),
        ("words=a, b", "words", ("a", "b")),
        ("flag=true", "flag", True),
        ("shape.width=12", "shape.width", 12),
        ("m.y=7", "m.y", (7,)),
        ("compute.precision=bf16", "compute.precision", "bf16"),
        ("compute.threads=none", "compute.threads", None),
        ("compute.workers=2", "compute.workers", 2),
        ("compute.workers=auto", "compute.workers", "auto"),
    ],
)
def test_an_override_is_read_as_its_field_wants_it(override: str, key: str, value: object) -> None:
    found = {leaf.key: leaf.value for leaf in leaves(with_overrides(Config(), [override]))}
    assert found[key] == value
    assert type(found[key]) is type(value)


def test_overrides_are_checked_together() -> None:
    config = with_overrides(Config(), ["shape.width=16", "epochs=7", "epochs=8"])
    assert config == replace(Config(), shape=Shape(width=16), epochs=8)


def test_another_kind_starts_from_its_own_defaults_wherever_it_stands() -> None:
    assert with_overrides(Config(), ["m.x=4", "m.kind=a"]).m == A(x=4)
    assert with_overrides(Config(), ["m.kind=a"]).m == A()
    assert with_overrides(Config(), ["m.kind=b", "m.ratio=.75"]).m == B(ratio=0.75)  # TOML has no .75, people do
    kept = with_overrides(Config(m=B(ratio=0.7)), ["m.kind=b"])
    assert kept.m == B(ratio=0.7)


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("epochs", "'epochs' is not of the form key=value"),
        ("=3", "'=3' is not of the form key=value"),
        ("epoch=3", "unknown key 'epoch'; did you mean epochs?"),
        ("compute.worker=3", "unknown key 'compute.worker'; did you mean compute.workers"),
        ("workers=3", "did you mean compute.workers"),
        ("zzzz=3", "the keys are data, checkpoint, shape.width"),
        ("shape=3", "unknown key 'shape'"),
        ("m.x=3", "unknown key 'm.x'"),
        ("m.kind=c", "m.kind='c' must be one of 'a', 'b'"),
        ("m.y=1,2,x", "m.y=['1', '2', 'x']: input should be a valid integer"),
        ("epochs=many", "epochs='many': input should be a valid integer"),
        ("epochs=1.5", "epochs=1.5: input should be a valid integer"),
        ("epochs=true", "epochs=true"),
        ("epochs=none", "epochs='none': input should be a valid integer"),
        ("lr=[1]", "lr=[1]: input should be a valid number"),
        ("flag=2", "flag=2: input should be a valid boolean"),
        ("betas=0.9", "betas=[0.9]: "),
        ("compute.precision=fp8", "compute.precision='fp8': input should be 'auto', 'fp32', 'bf16' or 'fp16'"),
        (
            "compute.workers=many",
            "compute.workers='many': input should be a valid integer, unable to parse string as an integer, or 'auto'",
        ),
        ("compute.workers=-1", "workers=-1 must not be negative; auto fits"),
        ("compute.keep=0", "compute: keep=0 must be at least 1"),
        ("shape.width=10", "shape: width=10 must be a multiple of 4"),
    ],
)
def test_a_bad_override_is_refused_in_one_line(override: str, complaint: str) -> None:
    assert complaint in _refusal(override)


def test_a_bad_text_is_refused_naming_the_file() -> None:
    for text, complaint in (
        ("epochs = ", "run/config.txt is not a config file"),
        ("epoch = 3", "run/config.txt: unknown key 'epoch'; did you mean epochs?"),
        ("compute = 3", "run/config.txt: compute=3: "),
        ("m.x = 3", "run/config.txt: m.kind=None must be one of 'a', 'b'"),
        ("shape.width = 10", "run/config.txt: shape: width=10 must be a multiple of 4"),
    ):
        with pytest.raises(ValueError) as caught:
            from_text(Config, text, "run/config.txt")
        assert complaint in str(caught.value)


def test_a_missing_value_is_named() -> None:
    @dataclass(frozen=True)
    class Needy:
        must: int = science()

    with pytest.raises(ValueError, match="config: must is missing"):
        from_text(Needy, "")


def test_identity_is_the_science_and_the_content_of_the_checkpoint() -> None:
    base = identity(Config(), "cls", None)
    assert len(base) == 10
    for same in (
        Config(compute=Compute(workers=0)),
        Config(note="x"),
        Config(checkpoint="/elsewhere"),
        Config(grad_clip=None, betas=(0.9, 0.95)),
        from_text(Config, to_text(Config())),
    ):
        assert identity(same, "cls", None) == base
    others = [
        identity(Config(seed=1), "cls", None),
        identity(Config(m=A()), "cls", None),
        identity(Config(shape=Shape(depth=3)), "cls", None),
        identity(Config(), "det", None),
        identity(Config(), "cls", "00"),
    ]
    assert len({base, *others}) == 1 + len(others)


def test_a_whole_number_is_the_same_number_in_a_recipe_and_in_a_file() -> None:
    sloppy = Config(lr=5, betas=(0, 1))
    assert identity(sloppy, "cls", None) == identity(from_text(Config, to_text(sloppy)), "cls", None)


def test_an_earlier_config_keeps_its_loading_processes() -> None:
    assert from_text(Config, to_text(Config()).replace('workers = "auto"', "workers = 2")).compute.workers == 2


def test_compute_is_checked() -> None:
    for wrong in ({"workers": -1}, {"threads": 0}, {"accumulate": 0}, {"save_every": 0}):
        with pytest.raises(ValueError, match="must"):
            Compute(**wrong)


@dataclass(frozen=True)
class Old:
    """A config as an earlier release had it; `Now` is the same today."""

    decoder: str = science("torchvision")
    views: Shape = field(default_factory=Shape)
    m: A | B = field(default_factory=B)
    at_once: int = speed(4)


@dataclass(frozen=True)
class Now:
    """Every kind of field renamed: a value, a group of fields, a value of no science."""

    formerly: ClassVar[str] = "Old"

    jpeg_decoder: str = science("torchvision", formerly="decoder")
    augmentation: Shape = nested(Shape, formerly="views")
    m: A | B = field(default_factory=B)
    eval_batch: int = speed(4, formerly="at_once")


def test_a_renamed_field_leaves_identities_alone() -> None:
    assert identity(Now(), "cls", None) == identity(Old(), "cls", None)
    changed = Old(decoder="pil", views=Shape(width=12), m=A(), at_once=8)
    now = from_text(Now, to_text(changed))
    assert now == Now(jpeg_decoder="pil", augmentation=Shape(width=12), m=A(), eval_batch=8)
    assert identity(now, "cls", "00") == identity(changed, "cls", "00")
    assert from_text(Now, to_text(now)) == now
    assert "decoder =" not in to_text(now).replace("jpeg_decoder", "")


def test_former_names_are_taken_as_overrides_and_the_new_one_is_told(caplog: pytest.LogCaptureFixture) -> None:
    fields._tell.cache_clear()
    for _ in range(2):
        given = ["decoder=pil", "views.width=12", "m=a", "at_once=8"]
        assert with_overrides(Now(), given) == Now("pil", Shape(width=12), A(), 8)
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        f"{old} was renamed to {new}; the old name works in this release only"
        for old, new in (
            ("decoder", "jpeg_decoder"),
            ("views.width", "augmentation.width"),
            ("at_once", "eval_batch"),
        )
    ]
    assert {"decoder", "jpeg_decoder", "views.width", "augmentation.width"} <= keys(Now())


def test_both_names_of_a_field_are_one_too_many() -> None:
    both = 'decoder = "pil"\njpeg_decoder = "pil"\n'
    with pytest.raises(ValueError, match=r"config: decoder .* jpeg_decoder, .*remove decoder"):
        from_text(Now, both)


@dataclass(frozen=True)
class Since(Shape):
    """`Shape` with fields that came with a later release."""

    rounded: bool = science(False, later=True)
    mean: tuple[float, ...] | None = science(None, later=True)
    sides: tuple[int, ...] = science((2, 4), later=True)


@dataclass(frozen=True)
class Holder:
    """A config whose group of fields has grown."""

    shape: Since = field(default_factory=Since)


def test_fields_of_a_later_release_have_their_defaults_in_older_files() -> None:
    written = tomllib.loads(to_text(Holder(Since(width=4, rounded=True))))["shape"]
    later = {"rounded", "mean", "sides"}
    older = {key: value for key, value in written.items() if key not in later}
    assert fields.with_later_fields(Holder, {"shape": older}) == {"shape": {**written, "rounded": False}}
    assert fields.with_later_fields(Holder, {"shape": written}) == {"shape": written}
    assert identity(Since(), "cls", None) != identity(Since(rounded=True), "cls", None)

"""Architecture of an ADM (Dhariwal and Nichol, 2021), and the flags that describe it."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

from adir.errors import InputError


@dataclass(frozen=True)
class Architecture:
    """Settings that determine the tensors and the arithmetic of an ADM.

    A level is one resolution of the UNet. Levels are ordered from the full resolution to the
    lowest.
    """

    model_channels: int
    """The width of the sinusoidal time embedding.

    It differs from the number of channels of the first level if channel_mult does not start with 1.
    """
    channels: tuple[int, ...]
    """The number of channels of each level."""
    num_res_blocks: int
    attention: tuple[bool, ...]
    """True for each level with attention. The middle block always has attention."""
    out_channels: int
    use_scale_shift_norm: bool
    resblock_updown: bool
    num_heads: int
    num_head_channels: int
    """The number of channels per attention head. With -1, num_heads is used instead."""
    num_heads_upsample: int
    """The number of heads in the upsampling half. With -1, it is num_heads."""
    use_new_attention_order: bool

    def heads(self, channels: int, upward: bool = False) -> int:
        """Return the number of heads of an attention block.

        channels: the number of channels of the block.
        upward: whether the block is in the upsampling half of the network.
        """
        if self.num_head_channels != -1:
            return channels // self.num_head_channels
        return (
            self.num_heads_upsample if upward and self.num_heads_upsample != -1 else self.num_heads
        )


@dataclass(frozen=True)
class Flags:
    """Architecture flags of `create_model` in OpenAI's guided-diffusion.

    The flags have the same meaning as in `create_model`. A flag that is None is inferred from the
    checkpoint's tensors. The number of heads and the order of queries, keys and values cannot be
    inferred.

    Attributes:
        image_size: side of the images in pixels, used only to interpret `attention_resolutions`.
        channel_mult: channels per level relative to `num_channels`, such as [0.5, 1, 1, 2] or
            "0.5,1,1,2".
        class_cond: must be false, because class-conditional networks are not supported.
        attention_resolutions: sides in pixels of the levels with attention.
        num_heads: heads per attention block; -1 means unset. `num_heads` or `num_head_channels`
            must be set.
        num_head_channels: channels per head; -1 means unset. If it is set, `num_heads` is ignored.
        use_new_attention_order: whether the rows of the qkv tensor, which holds queries, keys and
            values, are ordered as in guided-diffusion's new attention; see `split_qkv`.

    Raises:
        InputError: if `class_cond` is true, if `learn_sigma` is not a boolean, or if
            `attention_resolutions` is given without `image_size`.
    """

    image_size: int | None = None
    num_channels: int | None = None
    num_res_blocks: int | None = None
    channel_mult: Sequence[float] | str | None = None
    learn_sigma: bool | None = None
    class_cond: bool = False
    attention_resolutions: Sequence[int] | str | None = None
    num_heads: int = -1
    num_head_channels: int = -1
    num_heads_upsample: int = -1
    use_scale_shift_norm: bool | None = None
    resblock_updown: bool | None = None
    use_new_attention_order: bool = False

    def __post_init__(self) -> None:
        if self.class_cond:
            raise InputError(
                "class_cond=true: class-conditional networks are not supported; give an "
                "unconditional one"
            )
        if self.learn_sigma not in (None, True, False):
            raise InputError(f"learn_sigma={self.learn_sigma!r}: give true, false or null")
        if self.attention_resolutions is not None and self.image_size is None:
            raise InputError(
                "attention_resolutions are sides of feature maps in pixels, which depend on "
                "image_size; set image_size too"
            )

    def resolve(self, found: Architecture) -> Architecture:
        """Return the architecture that the flags and the checkpoint describe together.

        found: architecture inferred from the checkpoint's tensors, used where a flag is None.

        Raises InputError if both `num_heads` and `num_head_channels` are unset, if a list of
        numbers is malformed, or if heads or norm groups do not divide the channels evenly.
        """
        if self.num_head_channels == -1 and self.num_heads == -1:
            raise InputError(
                "the number of attention heads cannot be inferred from the tensors of the network; "
                "set num_heads or num_head_channels "
                "(backbone.architecture.num_head_channels=64 for OpenAI's unconditional networks)"
            )
        # Flags and fields of the same name have the same meaning.
        given = {field.name: getattr(self, field.name, None) for field in fields(found)}
        model_channels = found.model_channels if self.num_channels is None else self.num_channels
        channels, attention = found.channels, found.attention
        # In guided-diffusion, "" means a default that depends on image_size.
        if self.channel_mult not in (None, ""):
            factors = numbers(self.channel_mult, "channel_mult")
            channels = tuple(int(factor * model_channels) for factor in factors)
        if self.attention_resolutions is not None and self.image_size is not None:
            sides = numbers(self.attention_resolutions, "attention_resolutions")
            reductions = {self.image_size // int(side) for side in sides if side >= 1}
            attention = tuple(2**level in reductions for level in range(len(channels)))
        stated = replace(
            found,
            **{name: flag for name, flag in given.items() if flag is not None},
            model_channels=model_channels,
            channels=channels,
            # The lengths differ if channel_mult is set and attention_resolutions is not.
            attention=(*attention, *[False] * len(channels))[: len(channels)],
            out_channels={None: found.out_channels, True: 6, False: 3}[self.learn_sigma],
        )
        require_whole_heads(stated)
        return stated


def numbers(value: Sequence[float] | str, what: str) -> list[float]:
    """Return the list of numbers in a flag's value, which is a list or a text such as "0.5,1".

    Args:
        value: value of the flag.
        what: name of the flag, for the error message.

    Raises:
        InputError: if part of `value` is not a number.
    """
    try:
        return [float(part) for part in (value.split(",") if isinstance(value, str) else value)]
    except (TypeError, ValueError) as error:
        raise InputError(f"{what}={value!r} must be numbers with commas between them") from error


def require_whole_heads(architecture: Architecture) -> None:
    """Raise InputError unless heads and norm groups divide the channels evenly.

    The number of channels of an attention block must be a multiple of its number of heads. The
    number of channels of a level must be a multiple of 32, the number of groups of its GroupNorms.
    """
    blocks = [
        c for c, has in zip(architecture.channels, architecture.attention, strict=True) if has
    ]
    for channels in [*blocks, architecture.channels[-1]]:  # the last is the middle block's
        for upward in (False, True):
            heads = architecture.heads(channels, upward)
            if (
                heads < 1
                or channels % heads
                or (architecture.num_head_channels not in (-1, channels // heads))
            ):
                stated = (
                    f"num_head_channels={architecture.num_head_channels}"
                    if architecture.num_head_channels != -1
                    else f"num_heads={heads}"
                )
                raise InputError(
                    f"{stated} does not divide the {channels} channels of an attention block"
                )
    for channels in architecture.channels:
        if channels % 32:
            raise InputError(
                f"a level has {channels} channels, but GroupNorm needs a multiple of 32; "
                "check num_channels and channel_mult"
            )

"""What an ADM (Dhariwal and Nichol, 2021) is made of, as the flags of OpenAI's guided-diffusion say
it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from adir.errors import InputError


@dataclass(frozen=True)
class Architecture:
    """An ADM as far as its tensors and its arithmetic go; levels are counted from the full
    resolution.
    """

    model_channels: int
    """Width of the sinusoidal time embedding; the first level's is another where channel_mult
    starts with 0.5.
    """
    channels: tuple[int, ...]
    """Of each level."""
    num_res_blocks: int
    attention: tuple[bool, ...]
    """Whether each level has it; the middle block always has."""
    out_channels: int
    use_scale_shift_norm: bool
    resblock_updown: bool
    num_heads: int
    num_head_channels: int
    """-1: num_heads counts."""
    num_heads_upsample: int
    """-1: as num_heads."""
    use_new_attention_order: bool

    def heads(self, channels: int, upward: bool = False) -> int:
        """Number of heads of an attention block; `upward`: on the way up."""
        if self.num_head_channels != -1:
            return channels // self.num_head_channels
        return (
            self.num_heads_upsample if upward and self.num_heads_upsample != -1 else self.num_heads
        )


@dataclass(frozen=True)
class Flags:
    """The flags of the reference's `create_model` that make a network; None is read off the
    checkpoint.

    image_size: pixels; only says what `attention_resolutions`, which are in pixels too, mean.
        channel_mult: as in
    [0.5, 1, 1, 2] or "0.5,1,1,2".  num_heads, num_head_channels: one of them must be stated, no
    tensor tells them; -1 is unset, and num_head_channels wins.  use_new_attention_order: of
    queries, keys and values in one tensor; no tensor tells it either.  class_cond: must be false,
    nothing here conditions on a class.
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
                "class_cond=true: class-conditional networks are not supported, nothing here "
                "gives a class"
            )
        if self.attention_resolutions is not None and self.image_size is None:
            raise InputError(
                "attention_resolutions are in pixels of image_size: state image_size too"
            )

    def resolve(self, found: Architecture) -> Architecture:
        """The architecture: what is stated here, else what was found.

        Raises InputError for what does not go together.
        """
        if self.num_head_channels == -1 and self.num_heads == -1:
            raise InputError(
                "num_heads or num_head_channels of the network must be stated, no tensor "
                "tells them "
                "(backbone.architecture.num_head_channels=64 for OpenAI's unconditional networks)"
            )
        stated = replace(
            found,
            num_heads=self.num_heads,
            num_head_channels=self.num_head_channels,
            num_heads_upsample=self.num_heads_upsample,
            use_new_attention_order=self.use_new_attention_order,
        )
        for name in ("num_res_blocks", "use_scale_shift_norm", "resblock_updown"):
            if getattr(self, name) is not None:
                stated = replace(stated, **{name: getattr(self, name)})
        if self.learn_sigma is not None:
            stated = replace(stated, out_channels=6 if self.learn_sigma else 3)
        if self.num_channels is not None:
            stated = replace(stated, model_channels=self.num_channels)
        if (
            self.channel_mult is not None and self.channel_mult != ""
        ):  # "" is the reference's word for its own choice
            widths = tuple(
                int(m * stated.model_channels) for m in numbers(self.channel_mult, "channel_mult")
            )
            stated = replace(stated, channels=widths)
        if self.attention_resolutions is not None:
            assert self.image_size is not None
            pixels = numbers(self.attention_resolutions, "attention_resolutions")
            factors = {self.image_size // int(side) for side in pixels if side >= 1}
            levels = range(len(stated.channels))
            stated = replace(stated, attention=tuple(2**level in factors for level in levels))
        if len(stated.attention) != len(
            stated.channels
        ):  # channel_mult is stated and the resolutions are not
            length = len(stated.channels)
            stated = replace(stated, attention=(*stated.attention, *[False] * length)[:length])
        require_whole_heads(stated)
        return stated


def flags_of_unet(
    *,
    image_size: int,
    model_channels: int,
    out_channels: int,
    num_res_blocks: int,
    attention_resolutions: Sequence[int],
    channel_mult: Sequence[float] = (1, 2, 4, 8),
    in_channels: int = 3,
    num_classes: int | None = None,
    num_heads: int = 1,
    num_head_channels: int = -1,
    num_heads_upsample: int = -1,
    use_scale_shift_norm: bool = False,
    resblock_updown: bool = False,
    use_new_attention_order: bool = False,
) -> Flags:
    """`Flags` from constructor arguments of the reference's UNetModel, where attention_resolutions
    are downsampling factors.
    """
    if in_channels != 3 or out_channels not in (3, 6):
        raise InputError(
            f"{in_channels} channels in and {out_channels} out: 3 in, and 3 or 6 out, are supported"
        )
    return Flags(
        # Pixels of an image that every factor divides, so that both ways of counting mean the same
        # levels.
        image_size=2 ** len(channel_mult),
        num_channels=model_channels,
        num_res_blocks=num_res_blocks,
        channel_mult=channel_mult,
        learn_sigma=out_channels == 6,
        class_cond=num_classes is not None,
        attention_resolutions=[
            2 ** len(channel_mult) // f
            for f in attention_resolutions
            if f <= 2 ** len(channel_mult)
        ],
        num_heads=num_heads,
        num_head_channels=num_head_channels,
        num_heads_upsample=num_heads_upsample,
        use_scale_shift_norm=use_scale_shift_norm,
        resblock_updown=resblock_updown,
        use_new_attention_order=use_new_attention_order,
    )


def numbers(value: Sequence[float] | str, what: str) -> list[float]:
    """[0.5, 1] of "0.5,1" or of the list itself. Raises InputError for anything else."""
    try:
        return [float(part) for part in (value.split(",") if isinstance(value, str) else value)]
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{what}={value!r}: numbers with commas between them are needed"
        ) from error


def require_whole_heads(architecture: Architecture) -> None:
    """Raise InputError unless heads divide the channels of every attention block, and norms the
    channels of every level.
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
                f"a level of {channels} channels: the norms of an ADM need multiples of 32"
            )

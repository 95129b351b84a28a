"""Random pages with NaN wherever no token is valid, and where the regions of a query lie in them."""

from dataclasses import replace

import torch
from torch import Tensor

from app.kernels.layout import Pages, Places, packed_bytes
from app.kernels.quant import quantize
from app.kernels.rope import rope_table


class Query:
    """One query over K regions of each KV head; two regions of a page, some regions short, one left out.

    Attributes:
        q: [Hkv, heads, D] float64; `pages` and `places` as `decode_attention` takes them, raw pages in float64.
    """

    def __init__(
        self, kv_heads: int, heads: int, dim: int, region: int, regions: int, codec: str = "raw", *, seed: int = 0
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        count, page = regions + 2, 2 * region
        kv = torch.randn(count, 2, kv_heads, page, dim, generator=generator, dtype=torch.float64)
        numbers = torch.stack([torch.randperm(count, generator=generator)[:regions] for _ in range(kv_heads)])
        inside = torch.randint(2, (kv_heads, regions), generator=generator)
        lengths = torch.randint(1, region + 1, (kv_heads, regions), generator=generator)
        lengths[:, regions // 3] = region
        if regions > 2:
            lengths[:, regions // 2] = 0
        head = torch.arange(kv_heads)[:, None]
        if codec == "raw":
            valid = torch.zeros(count, kv_heads, page, dtype=torch.bool)
            tokens = torch.arange(page) - inside[..., None] * region
            valid[numbers, head] = (tokens >= 0) & (tokens < lengths[..., None])
            data = kv.masked_fill(~valid[:, None, :, :, None], float("nan"))
            rows = (2 * numbers * kv_heads + head) * page + inside * region
            keys, values = rows * dim, (rows + kv_heads * page) * dim
            self.pages = Pages(data, keys, values, region)
        else:
            size = packed_bytes(codec, page, dim)
            data = quantize(kv.flatten(0, 2), codec).view(count, -1)
            keys = numbers * data.shape[1] + head * size
            values = keys + kv_heads * size
            self.pages = Pages(data, keys, values, region, codec, page, inside * region)
        starts = lengths.cumsum(-1) - lengths
        starts[0, 0] = -1  # of the first head one region is not rotated
        self.places = Places(lengths, starts, lengths.sum(-1) - 1)
        self.q = torch.randn(kv_heads, heads, dim, generator=generator, dtype=torch.float64)
        inv_freq = 1e4 ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
        self.rope = rope_table(inv_freq, regions * region + 1, 1.25, torch.float64)
        self.scale = dim**-0.5

    def rounded(self, dtype: torch.dtype, store: torch.dtype | None = None) -> "Query":
        """The same query, its numbers rounded to a dtype but held in float64."""
        twin = object.__new__(Query)
        twin.__dict__.update(self.__dict__)
        twin.q, twin.rope = self.q.to(dtype).double(), tuple(x.to(dtype).double() for x in self.rope)
        if self.pages.codec == "raw":  # packed ones are what they are
            twin.pages = replace(self.pages, data=self.pages.data.to(store or dtype).double())
        return twin

    def arguments(self, dtype: torch.dtype, device: str, store: torch.dtype | None = None) -> tuple:
        """What `decode_attention` takes, in a dtype on a device."""
        data = self.pages.data.to(store or dtype) if self.pages.codec == "raw" else self.pages.data
        lists = {name: getattr(self.pages, name) for name in ("keys", "values", "firsts")}
        lists = {name: None if x is None else x.to(device) for name, x in lists.items()}
        pages = replace(self.pages, data=data.to(device), **lists)
        places = Places(*(getattr(self.places, name).to(device) for name in ("lengths", "starts", "query")))
        return self.q.to(device, dtype), pages, places, tuple(x.to(device, dtype) for x in self.rope)


def relative(found: Tensor, wanted: Tensor) -> float:
    """Largest error as a share of the largest number wanted; infinite when something is no number."""
    found, wanted = found.detach().cpu().double(), wanted.detach().cpu()
    error = (found - wanted).abs().max() / wanted.abs().max()
    return float(error.nan_to_num(nan=float("inf")))

"""OLMo 2 written by hand over the CPU building blocks: what a compiled model is expected to become.

Weights are joined (query, key and value; gate and up) and rows are packed end to end. It stands in for a compiled model
in `bench/cpu.py`.
"""

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from weft.codegen.cpu.attention import decode_attention, left_pad_mask, packed_attention, plan_documents
from weft.codegen.cpu.head import linear_cross_entropy
from weft.codegen.cpu.linear import linear
from weft.codegen.cpu.packed_linear import PackedLinear
from weft.codegen.cpu.rowwise import add_rms_norm, gated_unit, rms_norm, rope, rope_tables


@dataclass(frozen=True)
class Sizes:
    width: int = 384
    layers: int = 8
    heads: int = 6
    hidden: int = 1024
    vocabulary: int = 16384
    theta: float = 5e5
    eps: float = 1e-6


class HandOlmo2(torch.nn.Module):
    """Joined parameters in dicts of lists; `forward` gives the rows before the head."""

    def __init__(self, sizes: Sizes, state: dict[str, Tensor], dtype: torch.dtype = torch.float32) -> None:
        """state: the state dict of a transformers Olmo2ForCausalLM of these sizes."""
        super().__init__()
        self.sizes = sizes
        w = {name: value.detach().to(dtype) for name, value in state.items()}
        p = [f"model.layers.{i}." for i in range(sizes.layers)]
        a, m = "self_attn.", "mlp."

        def each(*names: str) -> torch.nn.ParameterList:
            return torch.nn.ParameterList([torch.cat([w[at + name + ".weight"] for name in names]) for at in p])

        self.embedding = torch.nn.Parameter(w["model.embed_tokens.weight"].clone())
        self.qkv = each(a + "q_proj", a + "k_proj", a + "v_proj")
        self.qk_gain = each(a + "q_norm", a + "k_norm")
        self.out = each(a + "o_proj")
        self.attention_gain = each("post_attention_layernorm")
        self.gate_up = each(m + "gate_proj", m + "up_proj")
        self.down = each(m + "down_proj")
        self.mlp_gain = each("post_feedforward_layernorm")
        self.final_gain = torch.nn.Parameter(w["model.norm.weight"].clone())
        self.head = torch.nn.Parameter(w["lm_head.weight"].clone())

    def frequencies(self) -> Tensor:
        k = self.sizes.width // self.sizes.heads
        return 1.0 / self.sizes.theta ** (torch.arange(0, k, 2, dtype=torch.float32) / k)

    def forward(self, ids: Tensor, offsets: list[int], keep: list | None = None) -> Tensor:
        """ids [N], document starts and the end -> rows [N, D]. keep collects (k, v) of each layer."""
        s = self.sizes
        n, d, h = ids.shape[0], s.width, s.heads
        positions = torch.cat([torch.arange(b - a) for a, b in pairwise(offsets)])
        cos, sin = rope_tables(positions, self.frequencies(), self.head.dtype)
        plan = plan_documents(offsets)
        x = F.embedding(ids, self.embedding)
        for i in range(s.layers):
            qk, v = linear(x, self.qkv[i]).split((2 * d, d), -1)
            qk = rms_norm(qk.view(n, 2, d), self.qk_gain[i].view(2, d), s.eps).view(n, 2 * h, d // h)
            q, k = rope(qk, cos, sin).split((h, h), 1)
            v = v.view(n, h, d // h)
            if keep is not None:
                keep.append((k, v))
            a = packed_attention(q, k, v, plan).view(n, d)
            x = add_rms_norm(x, linear(a, self.out[i]), self.attention_gain[i], s.eps)
            m = linear(gated_unit(linear(x, self.gate_up[i])), self.down[i])
            x = add_rms_norm(x, m, self.mlp_gain[i], s.eps)
        return rms_norm(x, self.final_gain, s.eps)

    def loss(self, ids: Tensor, offsets: list[int], targets: Tensor, z: float = 1e-5) -> Tensor:
        ce, zs, count = linear_cross_entropy(self(ids, offsets), self.head, targets, z_coefficient=z)
        return (ce + z * zs) / count

    def logits(self, ids: Tensor, offsets: list[int]) -> Tensor:
        return linear(self(ids, offsets), self.head)


class Decoder:
    """Greedy decoding with packed weights and one static cache [2, B, G, S, K] per layer."""

    def __init__(self, model: HandOlmo2, cache_dtype: torch.dtype | None = None) -> None:
        self.model = model
        self.cache_dtype = cache_dtype or torch.float32
        pack = [[PackedLinear(w) for w in group] for group in (model.qkv, model.out, model.gate_up, model.down)]
        root = math.sqrt(model.sizes.width)
        self.layers = [
            (*linears, qk.detach().view(2, -1) * root, a.detach() * root, m.detach() * root)
            for *linears, qk, a, m in zip(*pack, model.qk_gain, model.attention_gain, model.mlp_gain, strict=True)
        ]
        self.final_gain = model.final_gain.detach() * root
        self.head = PackedLinear(model.head)
        self.floor = torch.tensor(math.sqrt(model.sizes.width * model.sizes.eps))

    @torch.inference_mode()
    def generate(self, prompts: list[Tensor], new_tokens: int) -> Tensor:
        """[B, new_tokens] greedy continuations."""
        s, b = self.model.sizes, len(prompts)
        h, k = s.heads, s.width // s.heads
        lengths = [len(p) for p in prompts]
        longest = max(lengths)
        columns = longest + new_tokens
        offsets = [0]
        for n in lengths:
            offsets.append(offsets[-1] + n)
        kept: list = []
        rows = self.model(torch.cat(prompts), offsets, kept)
        caches = []
        for keys, values in kept:
            cache = torch.zeros(2, b, h, columns, k, dtype=self.cache_dtype)
            for j, n in enumerate(lengths):
                part = slice(offsets[j], offsets[j + 1])
                cache[0, j, :, longest - n : longest] = keys[part].transpose(0, 1)
                cache[1, j, :, longest - n : longest] = values[part].transpose(0, 1)
            caches.append((cache[0], cache[1]))
        starts = torch.tensor([longest - n for n in lengths])
        mask = left_pad_mask(starts, columns, self.cache_dtype) if len(set(lengths)) > 1 else None
        last = rows[torch.tensor(offsets[1:]) - 1]
        ids = self.head(last).argmax(-1)
        result = [ids]
        steps = torch.arange(new_tokens)[:, None] + torch.tensor(lengths)
        cos, sin = rope_tables(steps.flatten(), self.model.frequencies(), self.model.head.dtype)
        cos, sin = cos.view(new_tokens, b, 1, k), sin.view(new_tokens, b, 1, k)
        for t in range(new_tokens - 1):
            ids = self.step(ids, cos[t], sin[t], caches, longest + t, mask)
            result.append(ids)
        return torch.stack(result, 1)

    def norm(self, x: Tensor) -> Tensor:
        """sqrt(mean(x^2) + eps) * sqrt(D); the gains hold the other sqrt(D)."""
        return torch.hypot(torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32), self.floor)

    def step(self, ids: Tensor, cos: Tensor, sin: Tensor, caches: list, column: int, mask: Tensor | None) -> Tensor:
        s = self.model.sizes
        b, d, h, f = ids.shape[0], s.width, s.heads, s.hidden
        x = F.embedding(ids, self.model.embedding)
        for (qkv_w, out_w, gate_up_w, down_w, qk_gain, attention_gain, mlp_gain), (keys, values) in zip(
            self.layers, caches, strict=True
        ):
            qkv = qkv_w(x)
            qk = qkv[:, : 2 * d].view(b, 2, d)
            qk = ((qk / self.norm(qk)) * qk_gain).to(x.dtype).view(b, 2 * h, d // h)
            qk = torch.mul(qk, cos).addcmul_(torch.roll(qk, d // h // 2, -1), sin)
            keys[:, :, column] = qk[:, h:]
            values[:, :, column] = qkv[:, 2 * d :].view(b, h, d // h)
            a = out_w(decode_attention(qk[:, :h], keys, values, column + 1, mask).view(b, d))
            x = torch.addcdiv(x, a * attention_gain, self.norm(a)).to(x.dtype)
            gu = gate_up_w(x)
            m = down_w(F.silu(gu[:, :f]).mul_(gu[:, f:]))
            x = torch.addcdiv(x, m * mlp_gain, self.norm(m)).to(x.dtype)
        return self.head(((x / self.norm(x)) * self.final_gain).to(x.dtype)).argmax(-1)

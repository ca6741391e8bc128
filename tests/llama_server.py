"""llama.cpp, by way of the package `xllamacpp`: an oracle for the GGUF files that we write."""

import json
import math
import urllib.error
import urllib.request

import torch


class LlamaCpp:
    """A GGUF file in llama.cpp's server, on the CPU, with a cache in float32 and no fused attention."""

    def __init__(self, path, n_ctx: int):
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_ctx = n_ctx
        params.n_parallel = 1
        params.warmup = params.fit_params = False
        params.verbosity = 0
        params.n_gpu_layers = 0
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self._server = xllamacpp.Server(params)

    def ask(self, path: str, **body):
        url = f"{self._server.listening_address}/{path}"
        request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=60) as reply:
                return json.loads(reply.read())
        except urllib.error.HTTPError as error:
            raise ValueError(error.read().decode()) from None

    def encode(self, text: str, *, add_special: bool = False, parse_special: bool = True) -> list[int]:
        return self.ask("tokenize", content=text, add_special=add_special, parse_special=parse_special)["tokens"]

    def decode(self, ids: list[int]) -> str:
        return self.ask("detokenize", tokens=ids)["content"]

    def chat(self, messages: list[dict]) -> str:
        """The prompt that the file's chat template makes, by llama.cpp's own Jinja."""
        return self.ask("apply-template", messages=messages)["prompt"]

    def greedy(self, prompt: list[int] | str, n_new: int, vocab_size: int) -> tuple[list[int], torch.Tensor]:
        """The likeliest continuation and the log-probabilities (n_new, V) it was chosen by."""
        reply = self.ask(
            "completion",
            prompt=prompt,
            n_predict=n_new,
            temperature=0,
            n_probs=vocab_size,
            return_tokens=True,
            cache_prompt=False,
            ignore_eos=False,
        )
        logprobs = torch.full((len(reply["tokens"]), vocab_size), -math.inf)
        for row, step in zip(logprobs, reply["completion_probabilities"], strict=True):
            for entry in step["top_logprobs"]:
                row[entry["id"]] = entry["logprob"]
        return reply["tokens"], logprobs

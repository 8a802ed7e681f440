#!/usr/bin/env python3
"""Models in and out of an S3-compatible store must be the same bytes as in and out of folders.

usage: object_store.py --bantam BINARY [--only NAME]

Needs `moto[server]` and nothing else. The store runs in this process, so that each request is seen, and answered with
an error or followed by a change of the store where a check wants that.
"""

import argparse
import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import threading
import urllib.request
import xml.etree.ElementTree

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

FIXTURES = pathlib.Path(__file__).resolve().parents[2] / "fixtures"
SECRET = "never-to-be-seen-5e1f"
BLOCK = 8 << 20
HEADER = 128 << 10
# The server asks whether a request is signed, not how well. A body without a type would be taken for a form.
HEADERS = {"X-Test": "1", "Content-Type": "application/octet-stream",
           "Authorization": "AWS4-HMAC-SHA256 Credential=key/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"}
SIZES = {"hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 4, "vocab_size": 4096}
RECIPE = 'schema = 1\nmodel = "model"\n\n[[pass]]\nuse = "{use}"\n\n[artifact]\nout = "out"\n{more}'


class Store:
    """The server: notes every request; `fault` may answer one with a status instead, `after` is called behind each."""

    def __init__(self):
        self.application = DomainDispatcherApplication(create_backend_app)
        self.requests, self.fault, self.after = [], None, None
        quiet = type("Quiet", (WSGIRequestHandler,), {"log": lambda *_: None})
        self.server = make_server("127.0.0.1", 0, self.answer, threaded=True, request_handler=quiet)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.put("bucket", b"")

    def answer(self, environ, start):
        request = {"method": environ["REQUEST_METHOD"], "path": environ["PATH_INFO"].removeprefix("/bucket/"),
                   "query": environ["QUERY_STRING"], "range": environ.get("HTTP_RANGE"), "bytes": 0,
                   "ours": "HTTP_X_TEST" in environ}
        status = None if request["ours"] or not self.fault else self.fault(request)
        if status:
            start(f"{status} Refused", [("Content-Length", "0")])
            body = []
        else:
            body = [b"".join(self.application(environ, start))]
        request["bytes"] = sum(map(len, body))
        self.requests.append(request)
        if self.after and not request["ours"]:
            self.after(request)
        return body

    def ask(self, method, path, body=None):
        request = urllib.request.Request(f"{self.url}/{path}", body, HEADERS, method=method)
        with urllib.request.urlopen(request) as answer:
            return answer.read()

    def put(self, path, body):
        self.ask("PUT", path, body)

    def put_folder(self, folder, prefix):
        for path in folder.iterdir():
            self.put(f"bucket/{prefix}/{path.name}", path.read_bytes())

    def names(self, prefix):
        listing = xml.etree.ElementTree.fromstring(self.ask("GET", f"bucket?list-type=2&prefix={prefix}/"))
        keys = [node.text for node in listing.iter() if node.tag.endswith("Key")]
        return sorted(key.removeprefix(prefix + "/") for key in keys)

    def objects(self, prefix):
        return {name: self.ask("GET", f"bucket/{prefix}/{name}") for name in self.names(prefix)}

    def fetched(self, since):
        """Requests for weights since then."""
        return [request for request in self.requests[since:]
                if request["method"] == "GET" and request["path"].endswith(".safetensors") and not request["ours"]]

    def written(self, since):
        """Names in the order in which they came to be there."""
        done = [request for request in self.requests[since:] if not request["ours"]
                and (request["method"] == "PUT" and "partNumber" not in request["query"]
                     or request["method"] == "POST" and "uploadId" in request["query"])]
        return [request["path"].rsplit("/", 1)[-1] for request in done]


class Bench:
    def __init__(self, binary, work):
        self.binary, self.work, self.store = binary, work, Store()
        self.model = work / "model"
        write_model(self.model)
        self.store.put_folder(self.model, "model")
        self.recipe = self.write_recipe("int4", "")
        self.sharded = self.write_recipe("int4", "shard_size = \"5MB\"\n")
        self.said = ""

    def write_recipe(self, use, more):
        path = self.work / f"{use}-{len(more)}.toml"
        path.write_text(RECIPE.format(use=use, more=more))
        return path

    def bantam(self, *arguments, code=0):
        environment = {key: value for key, value in os.environ.items() if not key.startswith("AWS_")} | {
            "AWS_ENDPOINT": self.store.url, "AWS_ALLOW_HTTP": "true", "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": SECRET, "NO_COLOR": "1",
            "BANTAM_STAGING": str(self.work / "staging")}
        done = subprocess.run([self.binary, *map(str, arguments)], env=environment, text=True, capture_output=True)
        self.said += done.stdout + done.stderr
        assert done.returncode == code, f"{arguments}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout if code == 0 else done.stderr

    def run(self, recipe, model, out, *more, code=0):
        return self.bantam("run", recipe, "--model", model, "--out", out, "--device", "cpu", *more, code=code)


def write_model(folder):
    """A Llama-shaped model in two shards of some 13 MB, and its index."""
    folder.mkdir()
    hidden, wide, blocks, words = SIZES.values()
    shapes = {"model.embed_tokens.weight": (words, hidden), "model.norm.weight": (hidden,), "lm_head.weight": (words, hidden)}
    for block in range(blocks):
        parts = {"self_attn.q_proj": (hidden, hidden), "self_attn.k_proj": (hidden // 2, hidden),
                 "self_attn.v_proj": (hidden // 2, hidden), "self_attn.o_proj": (hidden, hidden),
                 "mlp.gate_proj": (wide, hidden), "mlp.up_proj": (wide, hidden), "mlp.down_proj": (hidden, wide),
                 "input_layernorm": (hidden,), "post_attention_layernorm": (hidden,)}
        shapes |= {f"model.layers.{block}.{name}.weight": shape for name, shape in parts.items()}
    names = sorted(shapes)
    shards = {"model-00001-of-00002.safetensors": names[: len(names) // 2], "model-00002-of-00002.safetensors": names[len(names) // 2 :]}
    # The high byte of a BF16 number: sign and exponent of some hundredths.
    high = bytes([0x3C, 0x3D, 0xBC, 0xBD][byte % 4] for byte in range(256))
    for file, held in shards.items():
        header, data = {}, bytearray()
        for name in held:
            count = shapes[name][0] * (shapes[name] + (1,))[1]
            numbers = bytearray(random.Random(name).randbytes(2 * count))
            numbers[1::2] = numbers[1::2].translate(high)
            header[name] = {"dtype": "BF16", "shape": shapes[name], "data_offsets": [len(data), len(data) + len(numbers)]}
            data += numbers
        text = json.dumps(header).encode()
        (folder / file).write_bytes(len(text).to_bytes(8, "little") + text + data)
    index = {"weight_map": {name: file for file, held in shards.items() for name in held}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config = SIZES | {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_attention_heads": 4,
                      "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
                      "max_position_embeddings": 512, "hidden_act": "silu", "rope_theta": 10000.0}
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    (folder / "tokenizer.json").write_text('{"version": "1.0"}\n')


def same(objects, folder):
    expected = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert objects.keys() == expected.keys(), (objects.keys(), expected.keys())
    differ = [name for name in expected if name != "run.json" and objects[name] != expected[name]]
    assert not differ, differ


def check_run(bench):
    """From store to store the same bytes as from folder to folder; ranged reads; the manifest last; then nothing to do."""
    store, out = bench.store, bench.work / "out"
    bench.run(bench.recipe, bench.model, out)
    since = len(store.requests)
    said = bench.run(bench.recipe, "s3://bucket/model", "s3://bucket/out/int4")
    assert "uploaded" in said, said
    same(store.objects("out/int4"), out)
    fetched = store.fetched(since)
    size = sum(path.stat().st_size for path in bench.model.glob("*.safetensors"))
    assert fetched and all(request["range"] for request in fetched)
    assert max(request["bytes"] for request in fetched) <= BLOCK
    total = sum(request["bytes"] for request in fetched)
    assert total <= size + 2 * HEADER, f"{total} bytes were fetched of {size}"
    assert any(request["method"] == "POST" and "uploadId" in request["query"] for request in store.requests[since:]), \
        "a long file goes in parts"
    written = store.written(since)
    assert written[-1] == "manifest.json" and written[0].endswith(".safetensors"), written
    assert not any((bench.work / "staging").iterdir()), "nothing stays on this machine"
    print(f"  {len(fetched)} requests, {total} of {size} bytes, at most {max(r['bytes'] for r in fetched)} at once")
    since = len(store.requests)
    assert "nothing to do" in bench.run(bench.recipe, "s3://bucket/model", "s3://bucket/out/int4")
    assert not store.written(since)
    # From a store to a folder, too.
    bench.run(bench.recipe, "s3://bucket/model", bench.work / "from-store")
    same({path.name: path.read_bytes() for path in (bench.work / "from-store").iterdir()}, out)


def check_plan(bench):
    """The plan is that of the folder but for the memory that fetching takes."""
    plans = [json.loads(bench.bantam("plan", bench.recipe, "--model", model, "--out", bench.work / "p", "--json"))
             for model in (bench.model, "s3://bucket/model")]
    memory = [plan.pop("peak_memory_bytes") for plan in plans]
    assert BLOCK < memory[1] - memory[0] < 1 << 30, memory
    for plan in plans:
        del plan["model"], plan["smallest_memory_bytes"]
    assert plans[0] == plans[1]
    since = len(bench.store.requests)
    bench.bantam("plan", bench.recipe, "--model", "s3://bucket/model", "--out", "s3://bucket/p")
    assert not bench.store.written(since), "a plan writes nothing"


def check_inspect(bench):
    """Headers alone are fetched, by plans too."""
    since = len(bench.store.requests)
    bench.bantam("plan", bench.recipe, "--model", "s3://bucket/model")
    assert sum(request["bytes"] for request in bench.store.fetched(since)) <= 2 * HEADER
    since = len(bench.store.requests)
    reports = [json.loads(bench.bantam("inspect", model, "--json")) for model in (bench.model, "s3://bucket/model/")]
    assert reports[0]["tensors"] == reports[1]["tensors"]
    fetched = bench.store.fetched(since)
    assert len(fetched) == 2 and all(request["bytes"] <= HEADER for request in fetched), fetched
    shard = "s3://bucket/model/model-00001-of-00002.safetensors"
    assert len(json.loads(bench.bantam("inspect", shard, "--json"))["tensors"]) > 0


def check_changed(bench):
    """An object that changes while it is read ends the run, whatever is made of it afterwards."""
    store, shard = bench.store, "model-00002-of-00002.safetensors"
    original = (bench.model / shard).read_bytes()
    # Another weight, the same length.
    changed = original[:-1] + bytes([original[-1] ^ 1])
    store.put_folder(bench.model, "changing")
    headers = []

    def change(request):
        if request["path"].endswith(shard) and request["method"] == "GET":
            headers.append(request)
            if len(headers) == 1:
                store.put(f"bucket/changing/{shard}", changed)

    store.after = change
    said = bench.run(bench.recipe, "s3://bucket/changing", bench.work / "changed", code=3)
    store.after = None
    assert "has changed since it was opened" in said and shard in said, said
    assert not (bench.work / "changed").exists()
    # The same command reads the model as it is now.
    bench.run(bench.recipe, "s3://bucket/changing", bench.work / "changed")
    bench.bantam("verify", bench.work / "changed", "--source", "s3://bucket/changing")
    bench.bantam("verify", bench.work / "changed", "--source", bench.model, code=1)


def check_upload(bench):
    """An upload that fails leaves no manifest; the same command uploads the rest and nothing twice."""
    store, out = bench.store, bench.work / "sharded"
    bench.run(bench.sharded, bench.model, out)
    shards = sorted(path.name for path in out.glob("*.safetensors"))
    assert len(shards) > 2, shards
    refused = shards[1]
    store.fault = lambda request: 403 if request["method"] in ("PUT", "POST") and request["path"].endswith(refused) else None
    said = bench.run(bench.sharded, bench.model, "s3://bucket/out/sharded", code=4)
    store.fault = None
    assert refused in said, said
    assert store.names("out/sharded") == shards[:1]
    since = len(store.requests)
    said = bench.run(bench.sharded, bench.model, "s3://bucket/out/sharded")
    assert "1 were there" in said, said
    written = store.written(since)
    assert shards[0] not in written and written[-1] == "manifest.json", written
    same(store.objects("out/sharded"), out)


def check_killed(bench):
    """A process that is killed in the middle of an upload is continued."""
    store, out = bench.store, bench.work / "sharded"
    killed = threading.Event()

    def kill(request):
        if request["method"] == "PUT" and "killed" in request["path"] and not killed.is_set():
            killed.set()
            subprocess.run(["pkill", "-9", "-P", str(os.getpid()), "-x", pathlib.Path(bench.binary).name], check=True)

    store.after = kill
    bench.run(bench.sharded, bench.model, "s3://bucket/out/killed", code=-9)
    store.after = None
    assert "manifest.json" not in store.names("out/killed")
    bench.run(bench.sharded, bench.model, "s3://bucket/out/killed")
    same(store.objects("out/killed"), out)


def check_target(bench):
    """What is not ours is never overwritten; another artifact only with --fresh, its manifest going first."""
    store = bench.store
    store.put("bucket/foreign/notes.txt", b"mine")
    for more in ([], ["--fresh"]):
        said = bench.run(bench.recipe, bench.model, "s3://bucket/foreign", *more, code=4)
        assert "notes.txt" in said, said
    assert store.objects("foreign") == {"notes.txt": b"mine"}
    bench.run(bench.recipe, bench.model, "s3://bucket/out/target")
    assert "exists already" in bench.run(bench.sharded, bench.model, "s3://bucket/out/target", code=4)
    since = len(store.requests)
    bench.run(bench.sharded, bench.model, "s3://bucket/out/target", "--fresh")
    first = next(request for request in store.requests[since:] if request["method"] in ("PUT", "POST", "DELETE"))
    assert b"manifest.json" in str(first).encode() or first["method"] == "POST" and "delete" in first["query"], first
    same(store.objects("out/target"), bench.work / "sharded")


def check_readback(bench):
    """verify, diff and decode read artifacts where they lie; what needs a folder says so."""
    out = "s3://bucket/out/int4"
    bench.bantam("verify", out, "--source", "s3://bucket/model")
    bench.bantam("verify", out, "--source", bench.model)
    for command in (["diff", "s3://bucket/model", out], ["inspect", out]):
        bench.bantam(*command, "--json")
    bench.bantam("decode", out, "--out", bench.work / "decoded")
    bench.bantam("decode", bench.work / "out", "--out", bench.work / "expected")
    expected = (bench.work / "expected").glob("*.safetensors")
    for path in expected:
        assert path.read_bytes() == (bench.work / "decoded" / path.name).read_bytes(), path.name
    said = bench.bantam("decode", bench.work / "out", "--out", "s3://bucket/decoded", code=2)
    assert "needs a path on this machine" in said, said


def check_eval(bench):
    """A model and its tokenizer in a store are evaluated as in a folder."""
    bench.store.put_folder(FIXTURES / "tiny-llama", "tiny-llama")
    text = bench.work / "text.txt"
    text.write_text("".join(path.read_text() for path in sorted((FIXTURES / "text").glob("*.txt")))[:4000])
    figures = [bench.bantam("eval", model, "--text", text, "--context", 64, "--json")
               for model in (FIXTURES / "tiny-llama", "s3://bucket/tiny-llama")]
    assert figures[0] == figures[1]


def check_wrong(bench):
    """What is wrong with a model in a store is said as of a folder, with its URL."""
    store, folder = bench.store, "s3://bucket/partial"
    assert "no object begins with it" in bench.bantam("inspect", "s3://bucket/nothing", code=3)
    for name in ("config.json", "model.safetensors.index.json", "model-00001-of-00002.safetensors"):
        store.put(f"bucket/partial/{name}", (bench.model / name).read_bytes())
    said = bench.bantam("inspect", folder, code=3)
    assert f"`{folder}/model.safetensors.index.json` names `model-00002-of-00002.safetensors`" in said, said
    store.put("bucket/partial/model-00002-of-00002.safetensors", (bench.model / "model-00002-of-00002.safetensors").read_bytes()[:-5])
    said = bench.bantam("inspect", folder, code=3)
    assert f"`{folder}/model-00002-of-00002.safetensors` is truncated" in said, said
    said = bench.bantam("inspect", "s3://bucket/model?X-Amz-Signature=abc", code=2)
    assert "query" in said and "abc" not in said, said


def check_retries(bench):
    """A request that fails now and then is made again."""
    seen = []

    def sometimes(request):
        seen.append(request)
        return 503 if request["method"] == "GET" and len(seen) % 4 == 2 else None

    bench.store.fault = sometimes
    bench.run(bench.recipe, "s3://bucket/model", bench.work / "retried")
    bench.store.fault = None
    same({path.name: path.read_bytes() for path in (bench.work / "retried").iterdir()}, bench.work / "out")


def check_secrets(bench):
    """Nothing that was said or written holds a credential."""
    assert SECRET not in bench.said
    for prefix in ("out/int4", "out/sharded"):
        assert all(SECRET.encode() not in content for content in bench.store.objects(prefix).values())


CHECKS = [check_run, check_plan, check_inspect, check_changed, check_upload, check_killed, check_target, check_readback,
          check_eval, check_wrong, check_retries, check_secrets]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--bantam", required=True)
    parser.add_argument("--only")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        bench = Bench(str(pathlib.Path(arguments.bantam).resolve()), pathlib.Path(work))
        for check in CHECKS:
            if not arguments.only or arguments.only in check.__name__:
                print(f"{check.__name__.removeprefix('check_')}: {check.__doc__.splitlines()[0]}", flush=True)
                check(bench)
        print("all as expected")


if __name__ == "__main__":
    sys.exit(main())

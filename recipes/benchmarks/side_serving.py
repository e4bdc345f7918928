"""One server of the serving benchmark: python side_serving.py SERVER MODEL.onnx PORT. It knows nothing of cloudai.

Each is what its own documentation shows, with the settings that gave it most here: batches of up to 64 rows without a fixed
wait where it has one, one process for the model, ONNX Runtime on one thread, no access log. All answer POST /predict with JSON
``{"data": [[...]]}``, plain uvicorn and Ray Serve also with a row's plain bytes; MLServer speaks the Open Inference Protocol.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

SERVER, PATH, PORT = sys.argv[1], sys.argv[2], int(sys.argv[3])
BATCH = 64
OCTETS = "application/octet-stream"


class Model:
    """ONNX Runtime on one thread."""

    def __init__(self) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(PATH, options, providers=["CPUExecutionProvider"])
        self.input = self.session.get_inputs()[0]
        self.dtype = {"tensor(float)": np.float32, "tensor(int64)": np.int64}[self.input.type]
        self.shape = (-1, *self.input.shape[1:])

    def rows(self, data: Any) -> np.ndarray:
        """Read rows from a request's lists or bytes."""
        if isinstance(data, bytes):
            return np.frombuffer(data, self.dtype).reshape(self.shape)
        return np.asarray(data, self.dtype).reshape(self.shape)

    def run(self, rows: np.ndarray) -> np.ndarray:
        return self.session.run(None, {self.input.name: rows})[0]


def plain() -> None:
    """Serve as one does by hand: uvicorn, orjson, ONNX Runtime, each request by itself."""
    import orjson
    import uvicorn

    model = Model()

    async def application(scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message["body"], message["more_body"]
        as_bytes = (b"content-type", OCTETS.encode()) in scope["headers"]
        answer = model.run(model.rows(body if as_bytes else orjson.loads(body)["data"]))
        out = answer.tobytes() if as_bytes else orjson.dumps({"data": answer}, option=orjson.OPT_SERIALIZE_NUMPY)
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(out)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": out})

    uvicorn.run(application, port=PORT, log_level="warning", access_log=False, lifespan="off", loop="uvloop", http="httptools")


def litserve() -> None:
    """LitServe's processes import what they run, so that it lies in a file of its own."""
    run_file("lit_side.py", _LITSERVE)


_LITSERVE = """
import os, sys
sys.argv = ["side_serving.py", "inside", os.environ["SIDE_MODEL"], os.environ["SIDE_PORT"]]
sys.path.insert(0, os.path.dirname(os.environ["SIDE"]))
import litserve as ls
import numpy as np
import side_serving as side

class Api(ls.LitAPI):
    def setup(self, device):
        self.model = side.Model()
    def decode_request(self, request):
        return self.model.rows(request["data"])
    def batch(self, inputs):
        return np.concatenate(inputs)
    def predict(self, x):
        return self.model.run(x)
    def unbatch(self, output):
        return list(output)
    def encode_response(self, output):
        return {"data": output.tolist()}

if __name__ == "__main__":
    api = Api(max_batch_size=side.BATCH, batch_timeout=0.0)
    server = ls.LitServer(api, accelerator="cpu", workers_per_device=1, fast_queue=True)
    server.run(
        host="127.0.0.1", port=side.PORT, log_level="warning", generate_client_file=False, num_api_servers=1, access_log=False
    )
"""


def mlserver() -> None:
    """MLServer reads its settings from files."""
    settings = {
        "host": "127.0.0.1", "http_port": PORT, "grpc_port": PORT + 1, "metrics_port": PORT + 2, "parallel_workers": 0,
        "debug": False, "metrics_endpoint": None, "gzip_enabled": False,
    }  # fmt: skip
    model = {"name": "model", "implementation": "ml_side.Runtime", "max_batch_size": BATCH, "max_batch_time": 0.001}
    folder = Path(os.environ["SIDE_FOLDER"])
    (folder / "settings.json").write_text(json.dumps(settings))
    (folder / "model-settings.json").write_text(json.dumps(model))
    os.environ["PYTHONPATH"] = str(folder)
    run_file("ml_side.py", _MLSERVER, ["-m", "mlserver.cli.main", "start", str(folder)])


_MLSERVER = """
import os, sys
argv, sys.argv = sys.argv, ["side_serving.py", "inside", os.environ["SIDE_MODEL"], "0"]
sys.path.insert(0, os.path.dirname(os.environ["SIDE"]))
import mlserver
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceResponse
import side_serving as side
sys.argv = argv

class Runtime(mlserver.MLModel):
    async def load(self):
        self.inner = side.Model()
        return True

    async def predict(self, payload):
        rows = NumpyCodec.decode_input(payload.inputs[0])
        answer = self.inner.run(self.inner.rows(rows))
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output("output", answer)])
"""


def bentoml() -> None:
    """BentoML's processes import the service from a file of its own, too."""
    os.environ |= {"BENTOML_DO_NOT_TRACK": "True", "BENTOML_HOME": os.environ["SIDE_FOLDER"]}
    options = ["serve", "bento_side:Side", "--host", "127.0.0.1", "--port", str(PORT)]
    run_file("bento_side.py", _BENTOML, ["-m", "bentoml", *options])


_BENTOML = """
import os, sys
sys.argv = ["side_serving.py", "inside", os.environ["SIDE_MODEL"], "0"]
sys.path.insert(0, os.path.dirname(os.environ["SIDE"]))
import bentoml
import numpy as np
import side_serving as side

off = {"enabled": False}

@bentoml.service(workers=1, traffic={"timeout": 60, "max_concurrency": 1024}, metrics=off, logging={"access": off})
class Side:
    def __init__(self):
        self.model = side.Model()

    @bentoml.api(route="/predict", batchable=True, max_batch_size=64, max_latency_ms=60000)
    def predict(self, data: np.ndarray) -> np.ndarray:
        return self.model.run(self.model.rows(data))
"""


def run_file(name: str, content: str, arguments: list[str] | None = None) -> None:
    """Become a Python process for this file, or for these arguments beside it."""
    folder = Path(os.environ["SIDE_FOLDER"])
    (folder / name).write_text(content)
    os.chdir(folder)
    os.environ |= {"SIDE": str(Path(__file__).resolve()), "SIDE_MODEL": PATH, "SIDE_PORT": str(PORT)}
    os.execv(sys.executable, [sys.executable, *(arguments or [name])])


def ray() -> None:
    import asyncio
    import signal

    import ray as ray_package
    from ray import serve
    from starlette.requests import Request
    from starlette.responses import Response

    @serve.deployment(max_ongoing_requests=256, ray_actor_options={"num_cpus": 1})
    class Side:
        def __init__(self, path: str) -> None:
            self.model = Model()

        @serve.batch(max_batch_size=BATCH, batch_wait_timeout_s=0.0)
        async def answer(self, inputs: list[Any]) -> list[np.ndarray]:
            return list(self.model.run(np.concatenate([self.model.rows(one) for one in inputs])))

        async def __call__(self, request: Request) -> Any:
            as_bytes = request.headers.get("content-type") == OCTETS
            answer = await self.answer(await request.body() if as_bytes else (await request.json())["data"])
            return Response(answer.tobytes()) if as_bytes else Response(json.dumps({"data": answer.tolist()}))

    ray_package.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    serve.start(
        http_options={"host": "127.0.0.1", "port": PORT}, logging_config={"log_level": "ERROR", "enable_access_log": False}
    )
    serve.run(Side.bind(PATH), name="side", route_prefix="/predict", _blocking=False)
    loop = asyncio.new_event_loop()
    loop.add_signal_handler(signal.SIGTERM, loop.stop)
    loop.run_forever()
    serve.shutdown()
    ray_package.shutdown()


if __name__ == "__main__":
    {"plain": plain, "litserve": litserve, "mlserver": mlserver, "bentoml": bentoml, "ray": ray}[SERVER]()

"""Prompts that use one model at the same time in the queue: it is loaded once, and none changes it for another."""

from __future__ import annotations

from tools.server import ComfyServer
from tools.soak.prompts import Prompts, digest
from tools.soak.result import Result


def share(server: ComfyServer) -> Result:
    """Queues the reference between prompts of the same model that would leave traces if there were any."""
    result, prompts = Result("shared model"), Prompts(server)
    expected = digest(server.run(prompts.reference("first"), 900))
    size = {"size": "longest side", "size__longest_side": 128}
    other = prompts.estimate(128, 96, size)
    other |= {
        "apart": prompts.node("FE2ETakeApart", fe2e_model=["model", 0]),
        "together": prompts.node("FE2EPutTogether", fe2e_model=["model", 0], model=["apart", 0], vae=["apart", 1]),
        "again": prompts.node("FE2EEstimate", fe2e_model=["together", 0], image=["scaled", 0], **size),
        "features": prompts.node("FE2EFeatureView", fe2e_model=["model", 0], image=["scaled", 0], block="block 1"),
        "shown": prompts.node("PreviewImage", images=["features", 0]),
        "saved": prompts.node("FE2ESaveNPZ", geometry=["again", 0], filename_prefix="other"),
    }
    half = prompts.reference("half")
    half["model"] = prompts.node("FE2ELoadModel", **{**half["model"]["inputs"], "weight_dtype": "bf16"})
    queued = [server.queue(prompt) for prompt in (other, prompts.reference("second"), half, prompts.reference("third"))]
    found = [server.wait(identity, 900) for identity in queued]
    result.require("model" not in found[0].executed and "model" not in found[1].executed, "the model was loaded again")
    digests = [digest(found[index]) for index in (1, 2, 3)]
    result.require(digests[0] == expected and digests[2] == expected, "a prompt changed the model for the next one")
    result.require(digests[1] != expected, "another weight type gave the same result: it was not used")
    result.done = "4 prompts queued together: same model with other nodes, the reference, another weight type, the reference"
    result.found = "loaded once for the first three that could share it; reference result the same to the last bit"
    return result

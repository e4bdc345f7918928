"""A page on which a person can try a model: it knows nothing itself, and asks ``openapi.json`` with that person's token."""

from __future__ import annotations

import base64
import hashlib

__all__ = ["PAGE", "PAGE_HEADERS"]

_SCRIPT = """
const get = id => document.getElementById(id);
let examples = {};
const headers = () => get("token").value ? {"authorization": "Bearer " + get("token").value} : {};
const show = (title, text) => { get("status").textContent = title; get("answer").textContent = text; };
async function load() {
  const answer = await fetch("openapi.json", {headers: headers()});
  if (!answer.ok) { show("Give the token of the deployment, then load.", await answer.text()); return; }
  const about = await answer.json();
  get("path").replaceChildren();
  for (const [path, methods] of Object.entries(about.paths)) for (const method of Object.keys(methods)) {
    const option = document.createElement("option");
    option.textContent = method.toUpperCase() + " " + path;
    const content = methods[method].requestBody?.content["application/json"];
    examples[option.textContent] = content ? JSON.stringify(content.example ?? {inputs: []}, null, 1) : "";
    get("path").append(option);
    if (path.endsWith("/infer") && !path.includes("/versions/")) option.selected = true;
  }
  choose();
  show("Ready.", "");
}
function choose() { get("body").value = examples[get("path").value] ?? ""; get("body").hidden = !get("body").value; }
async function send() {
  const [method, path] = get("path").value.split(" ");
  const begun = performance.now();
  const body = method === "POST" ? get("body").value : undefined;
  const kind = body ? {"content-type": "application/json"} : {};
  const answer = await fetch(path, {method, body, headers: {...headers(), ...kind}});
  const text = await answer.text();
  const taken = (performance.now() - begun).toFixed(1);
  let pretty = text;
  try { pretty = JSON.stringify(JSON.parse(text), null, 1); } catch {}
  show(`${answer.status} ${answer.statusText}, ${taken} ms, id ${answer.headers.get("x-request-id")}`, pretty);
}
get("load").onclick = () => load().catch(error => show("No answer", String(error)));
get("send").onclick = () => send().catch(error => show("No answer", String(error)));
get("path").onchange = choose;
load().catch(error => show("No answer", String(error)));
"""

_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 52rem; margin: 2rem auto; padding: 0 1rem; }
label { display: block; margin: .8rem 0 .2rem; font-weight: 600; }
input, select, textarea { width: 100%; box-sizing: border-box; font: 13px/1.45 ui-monospace, monospace; padding: .4rem; }
textarea { height: 15rem; }
button { margin: .8rem .5rem 0 0; padding: .4rem 1.1rem; font: inherit; }
pre { overflow: auto; max-height: 24rem; padding: .8rem; border: 1px solid #8886; border-radius: 6px; }
#status { font-weight: 600; }
"""

PAGE = f"""<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>Try this model</title>
<style>{_STYLE}</style></head>
<body>
<h1>Try this model</h1>
<p>The whole interface is described in <a href="openapi.json">openapi.json</a> (OpenAPI 3.1), which takes the token, too.</p>
<label for="token">Token</label>
<input id="token" type="password" autocomplete="off" placeholder="what deployment.token_file holds">
<button id="load">Load</button>
<label for="path">Request</label><select id="path"></select>
<label for="body">Body</label><textarea id="body" spellcheck="false"></textarea>
<button id="send">Send</button>
<p id="status" role="status"></p>
<pre id="answer"></pre>
<script>{_SCRIPT}</script>
</body></html>
""".encode()
"""The page: it knows nothing of the model, and asks ``openapi.json`` with the token that a person gives it."""


def _source(content: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


_POLICY = "; ".join(
    (
        "default-src 'none'",
        f"script-src {_source(_SCRIPT)}",
        f"style-src {_source(_STYLE)}",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
PAGE_HEADERS = (
    (b"content-security-policy", _POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)
"""Only the page's own script and style run, it speaks to its own server only, and no other page can hold it in a frame."""

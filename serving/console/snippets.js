// A request of the playground as code to take along.

import { address } from "./api.js";
import { session } from "./session.js";

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

/** The request as a command line. */
export function asCurl({ path, body }) {
  const url = address(path);
  const key = session().needs_key ? ` \\\n  -H "Authorization: Bearer $KEN_API_KEY"` : "";
  return `curl ${body.stream ? "-N " : ""}${quoted(url)}${key} \\\n  -d ${quoted(JSON.stringify(body))}`;
}

/** The request with the project's Python client. */
export function asPython({ path, body }) {
  const server = address("").replace(/\/$/, "");
  const made = [python(server), session().needs_key ? 'os.environ["KEN_API_KEY"]' : null].filter(Boolean).join(", ");
  const imports = session().needs_key ? "import os\n\n" : "";
  return `${imports}from serving.client import Client\n\nwith Client(${made}) as client:\n${call(path, body)}`;
}

function call(path, body) {
  const task = decodeURIComponent(path.split("/")[2] ?? "");
  const given = (value, name) => (value && Object.keys(value).length ? `, ${name}=${python(value)}` : "");
  const parameters = given(body.parameters, "parameters");
  if (path === "v1/predict") {
    const told = "        print(task, answer.outputs)\n";
    return `    found = client.predict_many(${python(body.tasks)}, ${python(body.inputs)}${parameters})\n    for task, answer in found.answers.items():\n${told}`;
  }
  if (path.endsWith("/generate")) {
    const prompt = typeof body.prompt === "string" ? body.prompt : body.prompt.messages;
    const told = '        for piece in pieces:\n            print(piece.text, end="", flush=True)\n';
    return `    with client.stream(${python(task)}, ${python(prompt)}${parameters}) as pieces:\n${told}`;
  }
  const kind = body.kind ? `, kind=${python(body.kind)}` : "";
  return `    answer = client.predict(${python(task)}, ${python(body.inputs)}${parameters}${kind})\n    print(answer.outputs)\n`;
}

/** Plain data as a Python literal. */
function python(value) {
  if (value === null) return "None";
  if (value === true) return "True";
  if (value === false) return "False";
  if (Array.isArray(value)) return `[${value.map(python).join(", ")}]`;
  if (typeof value === "object")
    return `{${Object.entries(value)
      .map(([name, one]) => `${python(name)}: ${python(one)}`)
      .join(", ")}}`;
  return JSON.stringify(value); // a JSON string is a Python string, but for halves of characters, which no field gives
}

"""Renders conversations as transformers does: a file of {"source": …, "context": …} in, a list of texts or errors out."""

import json
import sys
from pathlib import Path

import jinja2
from transformers.utils.chat_template_utils import render_jinja_template


def rendered(job: dict) -> dict:
    context = dict(job["context"])
    try:
        texts, _ = render_jinja_template(
            conversations=[context.pop("messages")],
            tools=context.pop("tools", None),
            documents=context.pop("documents", None),
            chat_template=job["source"],
            add_generation_prompt=context.pop("add_generation_prompt", False),
            continue_final_message=context.pop("continue_final_message", False),
            **context,
        )
    except (jinja2.TemplateError, ValueError) as error:
        return {"error": str(error)}
    return {"text": texts[0]}


if __name__ == "__main__":
    jobs = json.loads(Path(sys.argv[1]).read_text())
    Path(sys.argv[2]).write_text(json.dumps([rendered(job) for job in jobs]))

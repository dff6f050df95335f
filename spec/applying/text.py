"""The tables and lists of APPLY.md, out of the text itself."""
import os, re

TEXT = open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "APPLY.md")).read()

def section(title): return TEXT.split(f"\n## {title}")[1].split("\n## ")[0]
def marked(text): return re.findall("`([^`]*)`", text)
def listed(begin, end, text=TEXT): return {*marked(text.split(begin)[1].split(end)[0])}
def table(text):
    rows = [re.split(r" *\| *", line)[1:-1] for line in text.splitlines() if line[:1] == "|"]
    return [r for r in rows if not set("".join(r)) <= {"-"}][1:]

FEATURES = {marked(r[0])[0]: r[2].split(",")[0]
            for r in table(TEXT.split("### 14.4")[1].split("### ")[0])}
with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "METHODS.md")) as f:
    LATER = f.read().split("## 5. Registry")[1].split("\n## ")[0]
FEATURES |= {marked(r[0])[0]: r[2].split(",")[0] for r in table(LATER)
             if len(r) == 4 and marked(r[0])}
NAMES, MODELS = section("Appendix A"), section("Appendix B")
with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "NAMES.md")) as f:
    OTHERS = f.read().split("**Other names.**")[1]
RENAMES = [(r[0], [tuple(marked(p)) for p in r[1].split("<br>")]) for r in table(NAMES) + table(OTHERS)]
WORDS = listed("*Words of generative classes*", "\n\n", MODELS)
TIED_BY_DEFAULT = listed("by default*", "\n\n", MODELS)
HEAD_NAMES = {t: (marked(r[0]) or [None])[0]
              for r in table(MODELS.split("*Names of an untied head*")[1]) for t in marked(r[1])}
SEGMENTS = MODELS.split("*First segments of heads*")[1].split("*Names of an untied head*")[0]
HEAD_SEGMENTS = {x for x in marked(SEGMENTS.split("For these")[0])}
HEAD_SEGMENTS_OF = {marked(r[0])[0]: marked(r[1]) for r in table(SEGMENTS)}
ENDS = TEXT.split("*Modules by their leaves*")[1]
EMBEDDINGS, HEADS = listed("embeddings are", "; heads", ENDS), listed("heads are", ";", ENDS)
LOOKUPS = listed("tables are", ".\n", ENDS)
WEIGHT_FILES = marked(re.split(r"has one of these\s+files", TEXT)[1])[:4]
SENSES = listed("*sense*", ". Otherwise", TEXT)
UNTIEABLE = listed("**R126.**", " and where", TEXT)
IN_TURNS = {"gpt_oss", "openai_privacy_filter"}
TRANSPOSED_EXPERTS = listed("The model types `gpt_oss`", "*of transposed", TEXT) | {"gpt_oss"}
CONV1D_MODELS = {"gpt2", "openai-gpt", "imagegpt", "decision_transformer"}
CONV1D = {"c_attn", "c_proj", "c_fc", "q_attn"}
PREFIXES = ["", "base_model.model.", "base_model.model.base_model.model.", "module.",
            "module.base_model.model."]  # F of section 4
PARTS = {"gate_up_proj": [("w1", "w3"), ("gate_proj", "up_proj")],
         "down_proj": [("w2",), ("down_proj",)]}
PARAMETERS = ["gate_up_proj", "w1", "w3", "w2", "up_proj", "gate_proj", "down_proj"]  # 8.1

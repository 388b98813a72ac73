"""Words of the embedded world and the tokenizer that maps a user's text onto them."""

from string import ascii_uppercase

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

SHAPES = ["circle", "square", "triangle", "star", "cross", "ring", "heart", "diamond", "arrow", "moon", "hexagon", "house"]
PLURALS = ["crosses" if s == "cross" else s + "s" for s in SHAPES]
COLORS = {"red": (215, 30, 35), "orange": (250, 140, 10), "yellow": (245, 225, 30), "green": (30, 150, 50),
          "cyan": (40, 215, 225), "blue": (30, 60, 215), "purple": (125, 30, 160), "pink": (255, 130, 190)}
COLOR_NAMES = list(COLORS)
SIGN, GROUND = len(SHAPES), len(SHAPES) + 1  # two patch classes after the shapes
NO_COLOR = len(COLORS)
LETTERS = "ABC"

SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<image>"]
WORDS = ("USER: ASSISTANT: ? is there a in the image what color shape object objects how many are left right of above below "
         "top bottom corner which closest to sign number on yes no A B C 0 1 2 3 4 5 6 7 8 9").split()
VOCAB = SPECIAL + WORDS + SHAPES + PLURALS + COLOR_NAMES + ["where"]
ID = {w: i for i, w in enumerate(VOCAB)}

CHAT_TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'user' %}USER: "
    "{% for c in m.content %}{% if c.type == 'image' %}<image>\n{% endif %}{% endfor %}"
    "{% for c in m.content %}{% if c.type == 'text' %}{{ c.text }} {% endif %}{% endfor %}"
    "{% else %}ASSISTANT: {% for c in m.content %}{% if c.type == 'text' %}{{ c.text }} {% endif %}{% endfor %}</s>"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Word level. Words of two or more letters are lowercased, single letters (options A, B, C) are kept.

    Punctuation other than "?" is dropped, numbers are split into digits and decode joined ("412").
    """
    fold = [normalizers.Replace(Regex(f"(?<=[A-Za-z]){x}|{x}(?=[A-Za-z])"), x.lower()) for x in ascii_uppercase]
    keep = [normalizers.Replace("user:", "USER:"), normalizers.Replace("assistant:", "ASSISTANT:"),
            normalizers.Replace(Regex(r"\ban\b"), "a")]
    t = Tokenizer(models.WordLevel(ID, unk_token="<unk>"))
    t.normalizer = normalizers.Sequence([*fold, *keep, normalizers.Replace(Regex(r"[.,;!()\"']"), " ")])
    t.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split("?", "isolated"), pre_tokenizers.Digits(individual_digits=True)])
    t.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", ID["<s>"])])
    t.decoder = decoders.Sequence([  # a space before every token, none between two digits, none before "?"
        decoders.Replace(Regex("^(?=.)"), " "), decoders.Fuse(),
        decoders.Replace(Regex(r"(?<=\d) (?=\d)|^ | (?=\?)"), "")])
    return PreTrainedTokenizerFast(
        tokenizer_object=t, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>", padding_side="left",
        model_input_names=["input_ids", "attention_mask"], extra_special_tokens={"image_token": "<image>"},
        clean_up_tokenization_spaces=False, chat_template=CHAT_TEMPLATE)

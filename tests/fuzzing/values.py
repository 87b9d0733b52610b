"""Values and names that a mutation puts where they are not expected."""

from __future__ import annotations

from typing import Any

ODD: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3, 7, 255, 2**16, 2**31 - 1, 2**31, 2**32, 2**40, 2**63, 2**64, -(2**63) - 1,
    10**30,
    0.0, -0.0, 0.5, 1.5, 1e-320, 1e308, -1e308, float("nan"), float("inf"), float("-inf"),
    "", "a", "A" * 5000, "\ud800", "\udfff x", "\x00", "\x1b[31m", "é", "1", "true", "null", "../../etc/passwd",
    "LABEL_0", "float16", "zstd", "O", [], {}, [[]], [None], ["a", "b"], [1, 2], [[1, "a"]], {"a": "b"}, {"0": "a"},
    {"type": "Sequence"}, {"": None}, [0.1] * 40, {"0": "a", "1": "b", "2": "c"},
)  # fmt: skip

CONFIG_KEYS = (
    "return_dict", "torchscript", "output_hidden_states", "output_attentions", "use_cache", "problem_type", "id2label",
    "label2id", "num_labels", "hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout",
    "attention_dropout", "dropout", "pooler_dropout", "initializer_range", "pad_token_id", "bos_token_id",
    "eos_token_id", "sep_token_id", "cls_token_id", "vocab_size", "type_vocab_size", "max_position_embeddings",
    "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "hidden_size", "intermediate_size", "hidden_act",
    "chunk_size_feed_forward", "is_decoder", "add_cross_attention", "tie_word_embeddings", "architectures",
    "summary_type", "summary_use_proj", "summary_activation", "finetuning_task", "task_specific_params", "dtype",
    "torch_dtype", "model_type", "layer_types", "rope_parameters", "rope_scaling", "sliding_window",
    "use_return_dict", "pruned_heads", "is_encoder_decoder", "name_or_path", "_commit_hash", "transformers_version",
    "attn_implementation", "_attn_implementation_internal", "gradient_checkpointing", "quantization_config", "auto_map",
    "layer_norm_eps", "rms_norm_eps", "position_buckets", "pos_att_type", "relative_attention", "pooler_hidden_size",
    "pooler_hidden_act", "max_length", "per_layer_config", "text_config", "vision_config", "classifier_activation",
)  # fmt: skip

ARCHITECTURES = (
    "BertForSequenceClassification", "BertForTokenClassification", "BertForQuestionAnswering", "BertModel",
    "BertForMaskedLM", "BertForNextSentencePrediction", "BertForMultipleChoice", "BertForPreTraining",
    "BertLMHeadModel",
    "RobertaForSequenceClassification", "RobertaForTokenClassification", "RobertaForQuestionAnswering", "RobertaModel",
    "DebertaV2ForSequenceClassification", "DebertaV2ForTokenClassification", "DebertaV2Model",
    "Qwen2ForSequenceClassification", "Qwen2ForTokenClassification", "Qwen2ForQuestionAnswering", "Qwen2Model",
    "PreTrainedModel", "AutoModel", "BertConfig", "BertTokenizer", "pipeline", "T5Model", "", "os", "Model",
)  # fmt: skip

TOKENIZER_CLASSES = (
    "BertTokenizer", "BertTokenizerFast", "PreTrainedTokenizerFast", "PreTrainedTokenizer", "RobertaTokenizer",
    "LlamaTokenizer", "T5Tokenizer", "XLMRobertaTokenizer", "DebertaV2Tokenizer", "Qwen2Tokenizer", "GPT2TokenizerFast",
    "CLIPTokenizer", "BertJapaneseTokenizer", "CanineTokenizer", "ByT5Tokenizer", "Wav2Vec2CTCTokenizer",
    "NllbTokenizer",
    "TokenizersBackend", "PythonBackend", "MistralCommonBackend", "AutoTokenizer", "LayoutLMv2Tokenizer", "NoSuch", "",
    "TapasTokenizer", "LukeTokenizer", "MarianTokenizer", "WhisperTokenizer", "EsmTokenizer", "XLNetTokenizer",
)  # fmt: skip

TOKENIZER_CONFIG_KEYS = (
    "model_max_length", "padding_side", "truncation_side", "model_input_names", "tokenizer_class", "pad_token",
    "unk_token", "cls_token", "sep_token", "mask_token", "bos_token", "eos_token", "added_tokens_decoder",
    "additional_special_tokens", "extra_special_tokens", "add_prefix_space", "add_bos_token", "add_eos_token",
    "clean_up_tokenization_spaces", "do_lower_case", "strip_accents", "tokenize_chinese_chars", "never_split",
    "split_special_tokens", "chat_template", "max_length", "stride", "truncation_strategy", "pad_to_multiple_of",
    "name_or_path", "special_tokens_map_file", "tokenizer_file", "vocab_file", "merges_file", "backend", "is_local",
    "init_inputs", "gguf_file", "tokenizer_object", "from_slow", "vocab", "merges", "unk_id", "post_processor",
    "tokenizer_padding", "tokenizer_truncation", "_json_truncation", "_json_padding", "sp_model_kwargs", "legacy",
    "fix_mistral_regex", "trim_offsets", "errors", "split_by_punct", "vocab_type", "local_files_only", "token",
)  # fmt: skip

STEPS: tuple[Any, ...] = (
    {"type": "Lowercase"},
    {"type": "NFKC"},
    {"type": "NFD"},
    {"type": "StripAccents"},
    {"type": "Nmt"},
    {"type": "Strip", "strip_left": True, "strip_right": True},
    {"type": "Prepend", "prepend": "▁" * 50},
    {"type": "Prepend", "prepend": ""},
    {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 5000},
    {"type": "Replace", "pattern": {"String": ""}, "content": "x"},
    {"type": "Replace", "pattern": {"Regex": ""}, "content": "x"},
    {"type": "Replace", "pattern": {"Regex": "."}, "content": ""},
    {"type": "Replace", "pattern": {"Regex": "("}, "content": ""},
    {"type": "Replace", "pattern": {"Regex": "(?=a)"}, "content": "bb"},
    {"type": "Precompiled", "precompiled_charsmap": ""},
    {"type": "Precompiled", "precompiled_charsmap": "AAAAAA=="},
    {"type": "ByteLevel"},
    {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": False},
    {"type": "Whitespace"},
    {"type": "WhitespaceSplit"},
    {"type": "Punctuation", "behavior": "MergedWithNext"},
    {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
    {"type": "Metaspace", "replacement": "", "prepend_scheme": "first"},
    {"type": "CharDelimiterSplit", "delimiter": "a"},
    {"type": "Digits", "individual_digits": True},
    {"type": "UnicodeScripts"},
    {"type": "FixedLength", "length": 0},
    {"type": "FixedLength", "length": 1},
    {"type": "Split", "pattern": {"Regex": ""}, "behavior": "Isolated", "invert": False},
    {"type": "Split", "pattern": {"String": ""}, "behavior": "Removed", "invert": True},
    {"type": "BertPreTokenizer"},
    {"type": "Split", "pattern": {"Regex": "\\s+"}, "behavior": "Removed", "invert": True},
    {"type": "BPEDecoder", "suffix": ""},
    {"type": "WordPiece", "prefix": "", "cleanup": True},
    {"type": "ByteFallback"},
    {"type": "Fuse"},
    {"type": "Strip", "content": " ", "start": 2**40, "stop": 1},
    {"type": "CTC", "pad_token": "", "word_delimiter_token": ""},
    {"type": "Sequence", "normalizers": []},
    {"type": "Sequence", "pretokenizers": [], "processors": [], "decoders": []},
    {"type": "BertProcessing", "sep": ["[SEP]", 2**32 - 1], "cls": ["[CLS]", 2]},
    {
        "type": "RobertaProcessing",
        "sep": ["</s>", 10**6],
        "cls": ["<s>", 0],
        "trim_offsets": True,
        "add_prefix_space": True,
    },
    {
        "type": "RobertaProcessing",
        "sep": ["</s>", 3],
        "cls": ["<s>", 2],
        "trim_offsets": False,
        "add_prefix_space": False,
    },
    {"type": "TemplateProcessing", "single": [], "pair": [], "special_tokens": {}},
    {
        "type": "TemplateProcessing",
        "single": [{"Sequence": {"id": "A", "type_id": 9}}],
        "pair": [{"Sequence": {"id": "B", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 2**31}}],
        "special_tokens": {},
    },
    {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "x", "type_id": 0}}],
        "pair": [{"SpecialToken": {"id": "x", "type_id": 0}}],
        "special_tokens": {"x": {"id": "x", "ids": [9999], "tokens": ["x"]}},
    },
)

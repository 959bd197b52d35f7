"""How many tokens a model reads, as its configuration says."""

from transformers import GPT2Config, LlamaConfig, LlavaConfig, T5Config

from logitstore.models.context_length import context_length


def test_it_is_what_the_configuration_of_any_family_says() -> None:
    assert context_length(LlamaConfig(max_position_embeddings=77)) == 77
    assert context_length(GPT2Config(n_positions=77)) == 77


def test_of_a_model_of_text_and_images_the_part_for_text_says_it() -> None:
    text = LlamaConfig(max_position_embeddings=77)
    assert context_length(LlavaConfig(text_config=text)) == 77


def test_a_model_without_a_limit_has_none() -> None:
    assert context_length(T5Config()) is None

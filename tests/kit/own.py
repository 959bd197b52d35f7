"""Losses of a user's own, as tests train with them."""

import torch
from torch import Tensor

import distill
from distill.losses.alm import alm
from distill.losses.loss import Options, Student, Teacher


@distill.loss(needs={"entries", "ids", "tail"}, weight=2.0)
def total_variation(teacher: Teacher, student: Student, options: Options) -> Tensor:
    """Half the distance between both sides' probabilities, all other tokens taken as one."""
    p = torch.cat([student.at_ids(), student.rest()[:, None]], 1).exp()
    q = torch.cat([teacher["entry_logmass"], teacher["rest_logmass"][:, None]], 1).exp()
    return (p - q).abs().sum(1) / 2


@distill.loss(needs={"token logprob"}, pairs="groups")
def likelihood(teacher: Teacher, student: Student, options: Options) -> Tensor:
    """What `alm` is, written by somebody else."""
    own = student.added_up(teacher["token_index"], teacher["token_pair"])
    return alm(own, teacher["logprob"])


@distill.loss(logits=True)
def spread(teacher: Teacher, student: Student, options: Options) -> Tensor:
    """The entropy of the student, over all of its vocabulary, at the teacher's positions."""
    logprobs = student.logits().log_softmax(-1)
    return -(logprobs.exp() * logprobs).sum(-1)

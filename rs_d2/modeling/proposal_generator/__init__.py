"""Proposal generators."""

from rs_d2.modeling.proposal_generator.rs_rpn import RSRPN

__all__ = ["RSRPN"]

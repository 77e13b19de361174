from op_case import Case

FUSED: list[Case] = []

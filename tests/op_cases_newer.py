from op_case import Case

NEWER: list[Case] = []

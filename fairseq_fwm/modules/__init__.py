"""fairseq's side of the mixers: attention modules and transformer layers."""

"""Distillers taken apart: a chain of transforms, a distance and a weight, as Auto-KD and KD-Zero search them.

`names` lists the operators, `shapes` says what each makes of a shape; both come without torch. `transforms`,
`distances` and `logit_rows` are the operators, `joining` brings unequal stages together and refuses what measures
nothing, and `kdzero` declares what three of the methods share. The methods stand in the folders of their slots:
`autokd` and `kdzero_features` among the features, `kdzero_embedding` among the relations, `autokd_logits` and
`kdzero_logits` among the logits.
"""

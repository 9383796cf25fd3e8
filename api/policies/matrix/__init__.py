"""`goldleaves policies matrix`: the proof that the live database lets everybody do what the headers of policies/ say.

Nothing is concluded from the text of policies: in a transaction that is rolled back two organizations get people, API
keys and a row in every tenant table, and then every statement is tried as everybody.

`catalog` asks what there is, `rows` makes a row of any table, `people` makes the two organizations and lists who tries,
`attempts` tries, `cells` judges what came of it, `proof` puts these together; `report` and `page` show it.
"""

"""The experiment with a real teacher, `tools.experiment_real`, in parts.

questions   prompts over the standard library's documentation, and the rules' answers
settings    students, contenders, sizes and jobs: what is compared with what
bodies      students made of the teacher: fewer layers, another vocabulary; and new ones
parts       texts, prompts, stores, tokenizers and healed students: made once, in one folder
sizes       the bytes a token of a store, and with fewer entries
students    one training run, and what is measured of the student
"""

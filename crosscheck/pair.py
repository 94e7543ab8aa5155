class Pair:
    def __init__(self,*a,**k): self.__dict__.update(k)

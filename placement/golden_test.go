package placement

var (
	goldenA, goldenB, goldenC, goldenD, goldenE, goldenF, goldenG uint32
	goldenH, goldenI                                              []int
)

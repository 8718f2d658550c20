/** Is told what is waited for from now on, for whoever wonders why it takes so long. */
export type WaitsFor = (what: string) => void;

export const tellNobody: WaitsFor = () => {};

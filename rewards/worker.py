import asyncio
from rewards.zoo import build_signal
class RewardWorker:
    def __init__(self,name,*,buffer,config):
        self.name=name;self.buffer=buffer;self.names=config.reward_names
        self.signals=[build_signal(r,"rewards") for r in config.rewards]; self.stopping=False
    async def score(self,group): return {n: await s.score(group,None) for n,s in zip(self.names,self.signals)}
    async def run(self):
        while not self.stopping:
            for g in await asyncio.to_thread(self.buffer.unscored,self.name,32,1.0):
                await asyncio.to_thread(self.buffer.score,g.id,await self.score(g))
    async def stop(self): self.stopping=True
